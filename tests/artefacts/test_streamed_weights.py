"""Weights written as they are made: the bytes that safetensors writes, and no tensor held."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.artefacts.streamed_weights import stream_weights
from evomerge.artefacts.tensor_file import PlannedTensor, write_tensors
from evomerge.artefacts.weight_files import write_weights
from evomerge.checkpoints.digests import dtype_name, tensor_digests
from evomerge.checkpoints.safetensors_files import INDEX, read_headers
from evomerge.storage.patience import is_full

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b.weight": torch.tensor(7.0),
    "é": torch.zeros(0, 4),
    "d": torch.full((5,), -1.5),
}
MIXED = TENSORS | {
    "flags": torch.tensor([True, False, True]),
    "half": torch.tensor([[0.5, 2.0]], dtype=torch.bfloat16),
    "ids": torch.tensor([2**40, -1]),
}


def _planned(tensors: dict[str, torch.Tensor]) -> list[PlannedTensor]:
    return [PlannedTensor(name, tuple(tensor.shape), dtype_name(tensor.dtype)) for name, tensor in tensors.items()]


def test_a_file_has_the_bytes_that_safetensors_writes(tmp_path: Path) -> None:
    stream_weights(tmp_path, _planned(TENSORS), reversed(TENSORS.items()))
    save_file(TENSORS, tmp_path / "expected.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()


def test_tensors_of_several_dtypes_are_aligned_and_read_back(tmp_path: Path) -> None:
    stream_weights(tmp_path, _planned(MIXED), MIXED.items())
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == MIXED.keys()
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in MIXED.items())
    stored = read_headers(tmp_path)
    assert all(stored[name].start % tensor.itemsize == 0 for name, tensor in MIXED.items())


def test_shards_are_filled_in_the_planned_order_whatever_comes_first(tmp_path: Path) -> None:
    stream_weights(tmp_path, _planned(TENSORS), reversed(TENSORS.items()), max_shard_bytes=28)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in TENSORS.values())
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    assert index["weight_map"] == {"a": first, "b.weight": first, "é": first, "d": second}
    read = {name: tensor for shard in (first, second) for name, tensor in load_file(tmp_path / shard).items()}
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())


def test_no_tensor_is_held_when_the_next_one_is_made(tmp_path: Path) -> None:
    planned = [PlannedTensor(str(number), (8,), "float32") for number in range(4)]
    held = []

    def made() -> Iterator[tuple[str, torch.Tensor]]:
        earlier: list[weakref.ref[torch.Tensor]] = []
        for number in range(4):
            held.append(sum(each() is not None for each in earlier))
            tensor = torch.full((8,), float(number))
            earlier.append(weakref.ref(tensor))
            yield str(number), tensor
            del tensor

    stream_weights(tmp_path, planned, made())
    assert max(held) == 0


@pytest.mark.parametrize("room", [8, 4096])  # less than the header, and than the tensor
def test_a_full_disk_is_an_error_with_the_name_of_the_file(
    room: int, room_for: Callable[[int], AbstractContextManager[None]], tmp_path: Path
) -> None:
    tensors = {"w": torch.zeros(10_000)}
    for write in (
        lambda: stream_weights(tmp_path, _planned(tensors), tensors.items()),
        lambda: write_weights(tmp_path, tensors.items()),
    ):
        with room_for(room), pytest.raises(OSError, match=r"safetensors") as raised:
            write()
        assert is_full(raised.value)
        assert Path(raised.value.filename).parent == tmp_path


def test_tensors_that_are_at_hand_are_written_with_the_bytes_that_safetensors_writes(tmp_path: Path) -> None:
    tensors = MIXED | {
        "wave": torch.tensor([1 + 2j]),
        "small": torch.ones(3).to(torch.float8_e4m3fn),
        "turned": torch.arange(6.0).reshape(2, 3).T,
    }
    write_tensors(tmp_path / "made.safetensors", tensors)
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, tmp_path / "expected.safetensors", metadata={"format": "pt"})
    made, expected = (load_file(tmp_path / f"{name}.safetensors") for name in ("made", "expected"))
    assert tensor_digests(made.items()) == tensor_digests(expected.items())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("a", torch.zeros(2)), ("b", torch.zeros(2))], "b was not planned"),
        ([("a", torch.zeros(2)), ("a", torch.zeros(2))], "was given before"),
        ([("a", torch.zeros(3))], "another shape"),
        ([("a", torch.zeros(2, dtype=torch.float16))], "another shape or dtype"),
        ([], "1 planned tensor not given, such as a"),
    ],
)
def test_other_tensors_than_the_planned_ones_are_refused(
    tensors: list[tuple[str, torch.Tensor]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        stream_weights(tmp_path, [PlannedTensor("a", (2,), "float32")], tensors)
