from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from evomerge.checkpoints.digests import dtype_name, tensor_digest
from evomerge.checkpoints.safetensors_files import (
    INDEX,
    SafetensorsTensors,
    read_header,
    read_headers,
    stored_digest,
)
from evomerge.errors import InvalidInput


def _tensors() -> dict[str, torch.Tensor]:
    return {
        "a.weight": torch.arange(6.0).reshape(2, 3),
        "b.weight": torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16),
        "count": torch.tensor([1, 2, 3]),
        "scalar": torch.tensor(2.5, dtype=torch.float16),
        "empty": torch.zeros(0, 3),
    }


def _raw(path: Path, header: Any, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def _sharded(directory: Path, weight_map: dict[str, str]) -> None:
    tensors = _tensors()
    for shard in set(weight_map.values()):
        names = [name for name, file in weight_map.items() if file == shard and name in tensors]
        save_file({name: tensors[name] for name in names}, directory / shard)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_a_header_tells_names_shapes_and_dtypes_without_reading_tensors(tmp_path: Path) -> None:
    save_file(_tensors(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "model.safetensors")
    assert {name: (stored.shape, stored.dtype) for name, stored in header.items()} == {
        name: (tuple(tensor.shape), dtype_name(tensor.dtype)) for name, tensor in _tensors().items()
    }


def test_tensors_are_read_as_views_of_the_mapped_file(tmp_path: Path) -> None:
    save_file(_tensors(), tmp_path / "model.safetensors")
    tensors = SafetensorsTensors(read_headers(tmp_path))
    assert list(tensors) == list(read_headers(tmp_path))
    assert all(torch.equal(tensors[name], tensor) for name, tensor in _tensors().items())
    assert tensors["a.weight"].data_ptr() == tensors["a.weight"].data_ptr()


def test_a_stored_tensor_and_the_loaded_one_have_the_same_digest(tmp_path: Path) -> None:
    save_file(_tensors(), tmp_path / "model.safetensors")
    stored = read_headers(tmp_path)
    assert {name: stored_digest(tensor) for name, tensor in stored.items()} == {
        name: tensor_digest(tensor) for name, tensor in _tensors().items()
    }


def test_a_changed_file_has_a_new_digest(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(3)}, file)
    before = stored_digest(read_header(file)["a"])
    save_file({"a": torch.ones(3)}, file)
    assert stored_digest(read_header(file)["a"]) != before


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    _sharded(tmp_path, {name: f"part-{number % 2}.safetensors" for number, name in enumerate(_tensors())})
    tensors = SafetensorsTensors(read_headers(tmp_path))
    assert all(torch.equal(tensors[name], tensor) for name, tensor in _tensors().items())


@pytest.mark.parametrize(
    "shard", ["../outside.safetensors", "/etc/passwd", "sub/part.safetensors", "..", "", "a\\b", 3]
)
def test_an_index_cannot_name_a_shard_outside_of_the_directory(tmp_path: Path, shard: object) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    save_file(_tensors(), tmp_path / "outside.safetensors")
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"a.weight": shard}}))
    with pytest.raises(InvalidInput, match="must be a file name in the same directory"):
        read_headers(directory)


def test_a_shard_may_be_a_link_as_in_a_hub_snapshot(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save_file(_tensors(), tmp_path / "blobs" / "0a1b")
    (tmp_path / "snapshot" / "part.safetensors").symlink_to("../blobs/0a1b")
    (tmp_path / "snapshot" / INDEX).write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(_tensors(), "part.safetensors")})
    )
    assert read_headers(tmp_path / "snapshot").keys() == _tensors().keys()


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    _sharded(tmp_path, {"a.weight": "one.safetensors", "count": "two.safetensors"})
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(InvalidInput, match=r"two\.safetensors, which is missing"):
        read_headers(tmp_path)


def test_a_tensor_that_the_index_promises_and_the_shard_lacks_is_named(tmp_path: Path) -> None:
    _sharded(tmp_path, {"a.weight": "one.safetensors", "ghost": "one.safetensors"})
    with pytest.raises(InvalidInput, match=r"one\.safetensors holds ghost, but it does not"):
        read_headers(tmp_path)


def test_all_of_a_shard_is_read_wherever_the_index_places_its_tensors(tmp_path: Path) -> None:
    tensors = _tensors()
    save_file({"a.weight": tensors["a.weight"]}, tmp_path / "one.safetensors")
    save_file({name: tensors[name] for name in ("count", "scalar")}, tmp_path / "two.safetensors")
    (tmp_path / INDEX).write_text(
        json.dumps({"metadata": {}, "weight_map": {"a.weight": "two.safetensors", "count": "one.safetensors"}})
    )
    assert read_headers(tmp_path).keys() == {"a.weight", "count", "scalar"}


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for shard in ("one", "two"):
        save_file({"a.weight": torch.zeros(2), shard: torch.zeros(1)}, tmp_path / f"{shard}.safetensors")
    weight_map = {"a.weight": "one.safetensors", "two": "two.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    with pytest.raises(InvalidInput, match=r"two\.safetensors holds a\.weight, and so does one\.safetensors"):
        read_headers(tmp_path)


def test_an_index_that_transformers_does_not_read_for_want_of_metadata_is_refused(tmp_path: Path) -> None:
    _sharded(tmp_path, dict.fromkeys(_tensors(), "one.safetensors"))
    content = json.loads((tmp_path / INDEX).read_text())
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": content["weight_map"]}))
    with pytest.raises(InvalidInput, match='add "metadata"'):
        read_headers(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e8m0fnu, torch.float8_e5m2fnuz])
def test_eight_bit_floats_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"a": torch.ones(3).to(dtype)}, tmp_path / "model.safetensors")
    assert read_headers(tmp_path)["a"].dtype == dtype_name(dtype)


def test_a_dtype_that_is_not_known_is_named(tmp_path: Path) -> None:
    entry = {"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}
    with pytest.raises(InvalidInput, match="a is stored as F4, which cannot be merged"):
        read_header(_raw(tmp_path / "model.safetensors", entry, b"ab"))


@pytest.mark.parametrize(
    "index", ["[]", "{}", '{"weight_map": {}}', "not json", '{"weight_map": {"a": "x", "a": "y"}}']
)
def test_an_index_that_is_not_one_is_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(InvalidInput):
        read_headers(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 8, 60, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "model.safetensors"
    save_file(_tensors(), file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InvalidInput, match="truncated"):
        read_header(file)


def test_bytes_behind_the_last_tensor_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(_tensors(), file)
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(InvalidInput, match="belong to no tensor"):
        read_header(file)


def test_a_header_length_beyond_the_limit_is_refused_without_reading_it(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(InvalidInput, match="truncated or not a safetensors file"):
        read_header(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F32", "shape": [1]},
        {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]},
        "F32",
    ],
)
def test_a_header_entry_that_contradicts_itself_is_refused(tmp_path: Path, entry: object) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_header(_raw(tmp_path / "model.safetensors", {"a": entry}, b"\0" * 4))


def test_a_header_that_names_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    entry = b'{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    file = _raw(tmp_path / "model.safetensors", b'{"a": ' + entry + b', "a": ' + entry + b"}", b"\0" * 4)
    with pytest.raises(InvalidInput, match="'a' stands twice"):
        read_header(file)
