"""Artifacts on an object store: whole objects, a working copy here, and errors in our own words."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from object_servers import KEY, SECRET

from evomerge.errors import InvalidInput
from evomerge.object_store.artifact_folder import ArtifactFolder, artifact_path
from evomerge.object_store.object_url import is_object_url, read_object_url
from evomerge.object_store.remote_folder import ArtifactsAway, RemoteFolder
from evomerge.object_store.scratch_folder import scratch_folder
from evomerge.storage.patience import StorageAway, StoragePatience

DIGEST = "a" * 64


@pytest.mark.parametrize(
    ("text", "shown"),
    [("s3://bucket", "s3://bucket"), ("S3://my.bucket/a/b=1/", "s3://my.bucket/a/b=1"), ("s3://abc/", "s3://abc")],
)
def test_a_url_is_a_bucket_and_a_prefix(text, shown):
    assert is_object_url(text)
    assert str(read_object_url(text)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIA:hunter2@bucket/runs",
        "s3://bucket/a?key=hunter2",
        "s3://bucket/../hunter2",
        "s3://bucket//hunter2",
        "s3://",
        "s3://hunter2 x/y",
    ],
)
def test_a_url_with_more_than_that_is_refused_and_not_shown(text):
    with pytest.raises(InvalidInput, match="come from the environment") as refused:
        artifact_path(text)
    assert "hunter2" not in str(refused.value)


def test_folders_and_file_urls_are_no_object_stores():
    assert not is_object_url("/data/s3://x")
    assert not is_object_url("file:///data")
    assert artifact_path("file:///data/a%20b") == Path("/data/a b")


def test_a_store_without_its_library_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "s3fs" else find(name))
    with pytest.raises(InvalidInput, match=r"pip install 'evomerge\[s3\]'"):
        ArtifactFolder(artifact_path("s3://bucket/runs")).check()


def test_an_object_is_put_whole_found_listed_and_deleted(bucket, tmp_path):
    folder = ArtifactFolder(artifact_path(bucket.url))
    folder.check()
    folder.keep("one", b"1")
    folder.keep("files/two", b"22")
    assert bucket.names() == {"one", "files/two"}
    assert [(each.name, each.size) for each in folder.origin.listed()] == [("files/two", 2), ("one", 1)]
    assert [each.name for each in folder.origin.listed("files")] == ["files/two"]
    folder.delete("one")
    folder.delete("one")
    assert bucket.names() == {"files/two"}
    assert folder.find("one") is None


def test_what_another_machine_has_put_is_fetched_once(bucket):
    bucket.put(f"files/{DIGEST}.safetensors", b"tensors")
    folder = ArtifactFolder(artifact_path(bucket.url))
    assert folder.has_files([DIGEST])
    folder.fetch_files([DIGEST])
    assert (folder.files / f"{DIGEST}.safetensors").read_bytes() == b"tensors"
    bucket.delete(f"files/{DIGEST}.safetensors")
    assert not folder.has_files([DIGEST])
    assert folder.find(f"files/{DIGEST}.safetensors") is not None
    assert {path.name for path in folder.files.iterdir()} == {f"{DIGEST}.safetensors"}
    folder.keep_files([DIGEST])
    assert folder.has_files([DIGEST])


def test_a_name_that_leads_out_of_the_folder_is_nowhere(bucket, tmp_path):
    folder = ArtifactFolder(artifact_path(bucket.url))
    assert folder.find("../../../secret") is None
    assert folder.find(str(tmp_path / "secret")) is None


def test_checkpoints_are_kept_as_they_change_and_found_by_the_next_worker(bucket):
    folder = ArtifactFolder(artifact_path(bucket.url))
    with scratch_folder(folder, "training") as first:
        (first.path / "dam-1.safetensors").write_bytes(b"step 1")
        first.keep()
        (first.path / "dam-1.safetensors").write_bytes(b"step 22")
        (first.path / ".dam-1.safetensors.writing-0123abcd").write_bytes(b"half")
        first.keep()
    assert not first.path.exists()
    with scratch_folder(folder, "training") as second:
        assert second.names() == ["dam-1.safetensors"]
        second.fetch(second.names())
        assert {path.name: path.read_bytes() for path in second.path.iterdir()} == {"dam-1.safetensors": b"step 22"}
        (second.path / "dam-1.safetensors").unlink()
        second.keep()
    assert bucket.names() == set()


def test_a_bucket_that_is_not_there_is_a_fault_of_the_spec(bucket):
    with pytest.raises(InvalidInput, match="there is no such bucket"):
        RemoteFolder(read_object_url("s3://no-such-bucket/runs")).check()


def test_keys_that_are_missing_are_asked_for(bucket, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"{bucket.server.url}/")  # another file system than that with the keys
    with pytest.raises(InvalidInput, match="AWS_ACCESS_KEY_ID"):
        RemoteFolder(read_object_url(bucket.url)).check()


def test_a_store_that_is_away_is_told_without_a_word_of_the_environment(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ArtifactsAway, match="cannot be reached at present") as away:
        ArtifactFolder(artifact_path(bucket.url)).check()
    with pytest.raises(ArtifactsAway, match="cannot be used") as unused:
        ArtifactFolder(artifact_path(bucket.url)).find("one")
    for said in (str(away.value), str(unused.value)):
        assert not any(secret in said for secret in (KEY, SECRET, "127.0.0.1"))


@dataclass
class Hours:
    """A clock on which waiting takes no time, and the store is back after an hour of it."""

    back: dict[str, str]
    now: float = 0.0
    lines: list[str] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now > 3600:
            os.environ.update(self.back)


def test_a_store_that_is_away_is_waited_for_as_a_database_is(bucket, monkeypatch):
    back = {"AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"]}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    clock = Hours(back, now=3400)
    patient = StoragePatience(seconds=600, say=clock.lines.append, clock=clock)
    ArtifactFolder(artifact_path(bucket.url), patient).keep("one", b"1")
    assert bucket.names() == {"one"}
    assert f"the artifacts {bucket.url}" in clock.lines[0]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageAway, match="run the same command again"):
        ArtifactFolder(artifact_path(bucket.url), StoragePatience(seconds=0.0)).keep("two", b"2")
