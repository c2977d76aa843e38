"""Files of recipes: named by their content, written whole, and checked when they are read."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from evomerge.checkpoints.recipe_files import load_tensors, read_tensors, store_tensors, to_bytes, write_tensors
from evomerge.errors import InvalidInput
from evomerge.whole_files import write_whole

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(1.5), "c": torch.ones(3, 2).bfloat16().T}
METADATA = {"phi": "tanh", "sources": '["one", "two"]', "z": "ü"}


def test_what_was_stored_is_loaded(tmp_path):
    digest = store_tensors(tmp_path / "new" / "folder", TENSORS, METADATA)
    tensors, metadata = load_tensors(tmp_path / "new" / "folder", digest)
    assert metadata == METADATA
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == [f"{digest}.safetensors"]


def test_the_same_content_has_the_same_bytes_in_every_process(tmp_path):
    digest = store_tensors(tmp_path, TENSORS, METADATA)
    code = (
        "import torch, pathlib, sys; from evomerge.checkpoints.recipe_files import store_tensors; "
        "print(store_tensors(pathlib.Path(sys.argv[1]), {'a': torch.tensor(1.5), 'c': torch.ones(2, 3).bfloat16(), "
        "'b': torch.arange(6.0).reshape(2, 3)}, {'z': 'ü', 'sources': '[\"one\", \"two\"]', 'phi': 'tanh'}))"
    )
    other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest
    assert len(list(tmp_path.iterdir())) == 1


def test_other_content_has_another_name(tmp_path):
    digests = {
        store_tensors(tmp_path, TENSORS, METADATA),
        store_tensors(tmp_path, TENSORS, METADATA | {"phi": "identity"}),
        store_tensors(tmp_path, TENSORS | {"a": torch.tensor(1.6)}, METADATA),
    }
    assert len(digests) == len(list(tmp_path.iterdir())) == 3


def test_a_missing_file_says_that_all_workers_need_it(tmp_path):
    with pytest.raises(InvalidInput, match="there for all workers"):
        load_tensors(tmp_path, "0" * 64)


def test_a_damaged_file_is_noticed(tmp_path):
    digest = store_tensors(tmp_path, TENSORS, METADATA)
    path = tmp_path / f"{digest}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="is damaged"):
        load_tensors(tmp_path, digest)


@pytest.mark.parametrize("digest", ["", "../" + "0" * 61, "A" * 64, "0" * 63])
def test_a_name_that_is_no_digest_never_becomes_a_path(tmp_path, digest):
    with pytest.raises(InvalidInput, match="no digest"):
        load_tensors(tmp_path, digest)


def test_a_write_that_fails_leaves_the_former_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "state"
    write_whole(path, b"former")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, b"later")
    assert path.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("further", [{}, {"wide": torch.zeros(2, dtype=torch.float64)}, {"index": torch.arange(3)}])
def test_a_file_that_is_written_tensor_by_tensor_has_the_bytes_of_the_library(tmp_path, further):
    tensors = TENSORS | {"none": torch.zeros(0, 4)} | further
    write_tensors(tmp_path / "file", tensors, METADATA)
    assert (tmp_path / "file").read_bytes() == to_bytes(tensors, METADATA)
    found, metadata = read_tensors(tmp_path / "file")
    assert metadata == METADATA
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_file_of_another_program_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"no safetensors")
    with pytest.raises(InvalidInput, match="no safetensors file that evomerge wrote"):
        read_tensors(tmp_path / "file")
