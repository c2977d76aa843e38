"""Safetensors files: headers read without torch, tensors read lazily as views of the memory-mapped file.

Covered: what transformers reads, which is one file or shards named by an index, under the usual names or the one that
config.json gives as `transformers_weights`. Not covered: files under other names (`consolidated.safetensors`), whose
tensor names are not those of transformers.
"""

from __future__ import annotations

import math
import mmap
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from evomerge.checkpoints.digests import bytes_digest
from evomerge.checkpoints.json_files import parse_object, read_object
from evomerge.errors import InvalidInput
from evomerge.forms import is_file
from evomerge.messages import some

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
INDEX_ENDING = ".safetensors.index.json"
HEADER_LIMIT = 100_000_000  # the limit of the safetensors library itself

_SETTLED_NS = 2 * 10**9  # a file can change twice within one tick of its time stamp, so a fresh stamp proves nothing

# The format's dtype codes: torch's name and the bytes per element.
DTYPES: Mapping[str, tuple[str, int]] = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
    "C64": ("complex64", 8),
}


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Location of a tensor: its bytes are [start, stop) of the file."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    start: int
    stop: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, from its header alone.

    Raises InvalidInput where the header is not one, or the file is shorter or longer than its header states.
    """
    size, start, header = _raw_header(path)
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if isinstance(entry, dict) and isinstance(code := entry.get("dtype"), str) and code not in DTYPES:
            raise InvalidInput(
                f"{path}: {name} is stored as {code}, which cannot be merged; known are {', '.join(DTYPES)}"
            )
    try:
        tensors = {name: _stored(path, start, entry) for name, entry in header.items()}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"{path} is not a safetensors file: its header has an entry that cannot be read") from error
    end = max((tensor.stop for tensor in tensors.values()), default=start)
    if end != size:
        problem = "is truncated" if end > size else "holds bytes that belong to no tensor"
        raise InvalidInput(f"{path} {problem}: its header describes {end:,} bytes, the file has {size:,}")
    return tensors


def read_headers(directory: Path, file: str | None = None) -> dict[str, StoredTensor]:
    """The tensors of a model directory, in one file or in the shards that its index names.

    As transformers does it, all of each shard is read, wherever the index places its tensors. A shard that is a
    symbolic link is followed: in a hub snapshot every file is a link to a blob beside it. Its *name* may not leave the
    directory.

    Args:
        file: the file or the index to read, where it is not one of the usual name.
    """
    if file is None:
        file = ONE_FILE if (directory / ONE_FILE).exists() else INDEX
    if not file.endswith(INDEX_ENDING):
        return read_header(directory / file)
    index = directory / file
    weight_map = read_weight_map(index)
    stored: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        found = read_header(directory / shard)
        if twice := sorted(found.keys() & stored.keys()):
            raise InvalidInput(
                f"{shard} holds {some(twice)}, and so does {stored[twice[0]].file.name}; remove one of them"
            )
        stored.update(found)
    check_promised(index, weight_map, stored)
    return stored


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> shard name, of the existing shards, from an index.

    Raises InvalidInput for names that are not plain file names, and where transformers could not read the index.
    """
    content = read_object(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidInput(f"{index} has no weight_map")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not is_file_name(shard):
            raise InvalidInput(f"{index} names the shard {shard!r}; a shard must be a file name in the same directory")
        if not is_file(index.parent / shard):
            raise InvalidInput(f"{index} names the shard {shard}, which is missing in {index.parent}")
    if not isinstance(content.get("metadata"), dict):
        raise InvalidInput(
            f'{index} has no metadata, without which transformers does not read it; add "metadata": {{}}'
        )
    return weight_map


def check_promised(index: Path, weight_map: Mapping[str, str], found: Collection[str]) -> None:
    """Raises InvalidInput where the shards lack tensors that their index names."""
    absent = sorted(weight_map.keys() - set(found))
    if absent:
        raise InvalidInput(f"{index} says that {weight_map[absent[0]]} holds {some(absent)}, but it does not")


def is_file_name(name: str) -> bool:
    """Whether a name cannot leave the directory that it is looked for in."""
    return name not in ("", ".", "..") and not any(character in name for character in "/\\\0")


def stored_digest(tensor: StoredTensor) -> str:
    """The digest of a stored tensor, equal to `tensor_digest` of the loaded one. Remembered while the file stays."""
    status = tensor.file.stat()
    if time.time_ns() - status.st_mtime_ns < _SETTLED_NS:
        return _read_digest(tensor)
    return _digest(tensor, status.st_size, status.st_mtime_ns)


class SafetensorsTensors(Mapping[str, torch.Tensor]):
    """Tensors by name, read when asked for. They share memory with the mapped file: nobody may write to them.

    A write would not reach the file (the mapping is private), but every later reader in this process would see it.
    """

    def __init__(self, stored: Mapping[str, StoredTensor]) -> None:
        self._stored = dict(stored)
        self._files: dict[Path, Any] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> torch.Tensor:
        path = self._stored[name].file
        with self._lock:
            if path not in self._files:
                self._files[path] = _open(path)
            tensor: torch.Tensor = self._files[path].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def _raw_header(path: Path) -> tuple[int, int, dict[str, Any]]:
    """File size, where the data starts, and the header."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, HEADER_LIMIT):
                raise InvalidInput(f"{path} is truncated or not a safetensors file")
            text = file.read(length)
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror or error}") from error
    return size, 8 + length, parse_object(text, f"the header of {path}")


def _stored(path: Path, offset: int, entry: Mapping[str, Any]) -> StoredTensor:
    """Raises KeyError, TypeError or ValueError where the entry contradicts itself."""
    dtype, itemsize = DTYPES[entry["dtype"]]
    shape = tuple(int(size) for size in entry["shape"])
    start, stop = entry["data_offsets"]
    if not all(type(number) is int for number in (start, stop, *entry["shape"])):
        raise TypeError(entry)
    if min(start, *shape, 0) < 0 or stop - start != math.prod(shape) * itemsize:
        raise ValueError(entry)
    return StoredTensor(file=path, shape=shape, dtype=dtype, start=offset + start, stop=offset + stop)


def _open(path: Path) -> Any:
    try:
        with path.open("rb"):  # the library says of every file that it cannot open that there is none
            return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InvalidInput(f"cannot read {path}: {error}") from error


@lru_cache(maxsize=100_000)
def _digest(tensor: StoredTensor, size: int, modified: int) -> str:
    return _read_digest(tensor)


def _read_digest(tensor: StoredTensor) -> str:
    with tensor.file.open("rb") as file:
        if tensor.start == tensor.stop:
            return bytes_digest(tensor.dtype, tensor.shape, memoryview(b""))
        with (
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as whole,
            whole[tensor.start : tensor.stop] as content,
        ):
            return bytes_digest(tensor.dtype, tensor.shape, content)
