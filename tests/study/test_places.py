"""Places of a search: paths are paths, whatever their characters, and relative ones begin at the file of the spec."""

import json
import shutil
from pathlib import Path

import optuna
import pytest

from evomerge.cli import run_command
from evomerge.errors import InvalidInput
from evomerge.opening.former_place import study_elsewhere
from evomerge.spec import load_spec, read_spec
from evomerge.storage.opening import open_storage, release
from evomerge.storage.url import absolute_url, file_of, folder_of, placed_folder, placed_url
from evomerge.study import stored_search
from evomerge.study.stored_search import artifacts_folder, from_anywhere, with_stored_artifacts

STRANGE = "run #1 50% ä%20{x}?"  # no part of a URL in any of them


@pytest.mark.parametrize("name", ["#1", "a?b", "50%", "%20", "a b", "größe", "a:b", "{x}", "file", "s3:"])
def test_a_path_is_a_path(tmp_path, name):
    assert folder_of(f"/data/{name}/items") == Path(f"/data/{name}/items")
    url = Path(f"/data/{name}/items").as_uri()
    assert folder_of(url) == Path(f"/data/{name}/items")
    assert placed_folder(f"{name}/items", tmp_path) == str(tmp_path / name / "items")
    assert placed_folder(url, tmp_path) == url


def test_artifacts_are_no_url_of_another_kind():
    with pytest.raises(InvalidInput, match=r"only a folder, a file:// or an s3:// URL"):
        folder_of("s3://bucket/items")


@pytest.mark.parametrize("name", ["#1", "50%", "%20", "a b", "größe", "{x}", "{", "a:b", "a@b"])
@pytest.mark.parametrize("scheme", ["sqlite", "journal"])
def test_a_file_of_a_study_may_have_any_name(tmp_path, scheme, name):
    assert _opened(f"{scheme}:///{tmp_path}/{name}/study.db", tmp_path) == tmp_path / name / "study.db"


def test_a_journal_may_have_a_question_mark(tmp_path):
    assert _opened(f"journal:///{tmp_path}/a?b/study.journal", tmp_path) == tmp_path / "a?b" / "study.journal"


def _opened(url, tmp_path):
    """The file of a URL, after a study was made there."""
    file = file_of(url)
    assert file_of(absolute_url(url)) == file
    storage = open_storage(url)
    optuna.create_study(storage=storage, study_name="here")
    release(storage)
    assert file.is_file()
    assert [path.name for path in tmp_path.iterdir()] == [file.parent.name]
    return file


@pytest.mark.parametrize(
    ("url", "placed"),
    [
        ("sqlite:///runs/a.db?timeout=9", "sqlite:////here/runs/a.db?timeout=9"),
        ("sqlite:////data/a.db", "sqlite:////data/a.db"),
        ("a.journal", "journal:////here/a.journal"),
        ("journal:///a.log", "journal:////here/a.log"),
        ("file:secrets/url", "file:/here/secrets/url"),
        ("file:/run/url", "file:/run/url"),
        ("env:STUDY", "env:STUDY"),
        ("postgresql://me@host/a", "postgresql://me@host/a"),
        ("sqlite://", "sqlite://"),
    ],
)
def test_a_relative_storage_begins_at_the_folder_of_its_spec(url, placed):
    assert placed_url(url, Path("/here")) == placed


def test_a_sqlite_file_cannot_be_below_a_question_mark():
    with pytest.raises(InvalidInput, match=r"use a journal"):
        placed_url("sqlite:///study.db", Path("/what?"))
    assert placed_url("study.journal", Path("/what?")) == "journal:////what?/study.journal"


def test_every_relative_path_of_a_spec_begins_at_its_file(write_spec, tmp_path, monkeypatch):
    other = {"studies": [{"name": "first", "storage": "sqlite:///first.db"}]}
    spec = write_spec(artifacts="~/items #1", warm_start=other)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for read in (load_spec(spec), read_spec(spec)):
        assert read.storage_url == f"sqlite:///{tmp_path}/runs/sim/study.db"
        assert artifacts_folder(read) == Path("~/items #1").expanduser()
        assert read.warm_start.studies[0].storage == f"sqlite:///{tmp_path}/first.db"
    stored = from_anywhere(read)
    assert artifacts_folder(stored) == artifacts_folder(read)
    assert "%20%231" in stored.artifacts


def test_a_search_goes_on_from_another_folder_and_every_character_of_its_path_is_kept(
    write_spec, tmp_path, monkeypatch, capsys
):
    home = tmp_path / STRANGE.replace("?", "")
    home.mkdir()
    spec = shutil.move(write_spec(artifacts=STRANGE, verdict={"best": 1}), home / "search.yaml")
    for folder, trials in ((tmp_path, 2), (home, 3)):
        monkeypatch.chdir(folder)
        assert run_command(["run", str(spec), "--ray", "none", "--trials", str(trials)]) == 0
        assert "note:" not in capsys.readouterr().err
    assert json.loads(printed(capsys, "status", spec, "--json"))["trials"]["complete"] == 3
    assert (home / "runs" / "sim" / "study.db").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == [home.name]
    assert sorted(path.name for path in home.iterdir()) == sorted(["runs", "search.yaml", STRANGE])
    monkeypatch.chdir(tmp_path)
    assert f"items: {home / STRANGE}" in printed(capsys, "leaderboard", spec)
    url = f"sqlite:///{home}/runs/sim/study.db"
    exported = printed(capsys, "export", "--storage", url, "--study", "sim", "--out", home / "out", "--json")
    assert json.loads(exported)["verified"]


def printed(capsys, *words):
    assert run_command([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_a_study_in_the_working_directory_is_said_in_one_line(write_spec, tmp_path, monkeypatch, capsys):
    spec = write_spec(verdict={"best": 1}, budget={"trials": 1})
    assert run_command(["run", str(spec), "--ray", "none"]) == 0
    assert study_elsewhere(spec, read_spec(spec)) == ""
    (tmp_path / "specs").mkdir()
    spec = shutil.move(spec, tmp_path / "specs" / "search.yaml")
    capsys.readouterr()
    assert run_command(["status", str(spec)]) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith(f"note: there is a study 'sim' in {tmp_path}/runs/sim/study.db, but relative paths")
    assert f"--storage sqlite:///{tmp_path}/runs/sim/study.db" in first
    assert len(rest) == 1
    assert run_command(["run", str(spec), "--ray", "none"]) == 0
    assert len([line for line in capsys.readouterr().err.splitlines() if line.startswith("note")]) == 1
    assert (tmp_path / "specs" / "runs" / "sim" / "study.db").is_file()
    assert run_command(["run", str(spec), "--ray", "none"]) == 0
    assert "note" not in capsys.readouterr().err  # it has begun here


def test_the_artifacts_of_a_study_on_a_server_are_where_it_began(write_spec, tmp_path, monkeypatch):
    monkeypatch.setattr(stored_search, "local_file", lambda url: None)  # as if the file were a server
    spec = write_spec(verdict={"best": 1}, budget={"trials": 1})
    given = load_spec(spec)
    assert with_stored_artifacts(given) is given
    assert run_command(["run", str(spec), "--ray", "none"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(stored_search, "run_directory", lambda url, name: Path("runs") / name)
    assert artifacts_folder(given) == Path("runs/sim/artifacts")
    found = with_stored_artifacts(given)
    assert artifacts_folder(found) == tmp_path / "runs" / "sim" / "artifacts"
    shutil.rmtree(artifacts_folder(found))
    assert with_stored_artifacts(given) is given
