"""A safetensors file, its header first: then each tensor goes to its place, in whatever order they come.

The library's own writer has an error for a full disk that is no OSError and names no file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from evomerge.checkpoints.digests import dtype_name
from evomerge.checkpoints.safetensors_files import DTYPES
from evomerge.whole_files import full_disk_named

_CODES = {name: (code, size) for code, (name, size) in DTYPES.items()}


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that will be written; the dtype by name."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def itemsize(self) -> int:
        return _CODES[self.dtype][1]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.itemsize


@dataclass(frozen=True)
class TensorPlace:
    """Bytes of an open file that belong to one tensor."""

    path: Path
    tensor: PlannedTensor
    descriptor: int
    start: int

    def fits(self, tensor: torch.Tensor) -> bool:
        return (tuple(tensor.shape), dtype_name(tensor.dtype)) == (self.tensor.shape, self.tensor.dtype)

    def write(self, tensor: torch.Tensor) -> None:
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        with full_disk_named(self.path):
            _write_at(self.descriptor, content, self.start)


def begin_file(path: Path, shard: Sequence[PlannedTensor], opened: ExitStack) -> dict[str, TensorPlace]:
    """Write the header of a file, and give every tensor its place in it: wide dtypes first, so that all are aligned."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts, end = {}, 0
    for tensor in sorted(shard, key=lambda each: (-each.itemsize, each.name)):
        starts[tensor] = end
        end += tensor.nbytes
        header[tensor.name] = {
            "dtype": _CODES[tensor.dtype][0],
            "shape": list(tensor.shape),
            "data_offsets": [starts[tensor], end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file = opened.enter_context(path.open("wb", buffering=0))
    first = 8 + len(text)
    with full_disk_named(path):
        _write_at(file.fileno(), memoryview(len(text).to_bytes(8, "little") + text), 0)
        file.truncate(first + end)
    return {tensor.name: TensorPlace(path, tensor, file.fileno(), first + start) for tensor, start in starts.items()}


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a file of tensors that are at hand, with the bytes that safetensors writes.

    Raises OSError, with the name of the file, where there is no room.
    """
    planned = [PlannedTensor(name, tuple(each.shape), dtype_name(each.dtype)) for name, each in tensors.items()]
    with ExitStack() as opened:
        for name, place in begin_file(path, planned, opened).items():
            place.write(tensors[name])


def _write_at(descriptor: int, content: memoryview, start: int) -> None:
    while content:  # one call writes 2 GiB at most, and less where the disk is almost full
        written = os.pwrite(descriptor, content, start)
        content, start = content[written:], start + written
