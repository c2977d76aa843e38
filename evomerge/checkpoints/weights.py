"""The weights of a model directory, in any kind of file.

PyTorch's older files (`pytorch_model.bin`) are pickles: they are read only where the user allowed it.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from zipfile import is_zipfile

import torch

from evomerge.checkpoints import safetensors_files
from evomerge.checkpoints.digests import dtype_name, tensor_digest
from evomerge.checkpoints.safetensors_files import (
    INDEX_ENDING,
    SafetensorsTensors,
    check_promised,
    read_headers,
    read_weight_map,
    stored_digest,
)
from evomerge.errors import InvalidInput
from evomerge.messages import first_line, some

PICKLE_FILE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Tensors as they are stored, under the names of the file.

    Attributes:
        header: name -> (shape, dtype name), known without reading any tensor.
        tensors: the tensors, read lazily; read-only by contract.
        digest: the digest of one stored tensor.
        pickled: whether they come from pickles.
    """

    header: Mapping[str, tuple[tuple[int, ...], str]]
    tensors: Mapping[str, torch.Tensor]
    digest: Callable[[str], str]
    pickled: bool

    def digests(self) -> dict[str, str]:
        """All digests. Hashing releases the interpreter lock, so a few threads read as fast as the disk."""
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return dict(zip(self.header, pool.map(self.digest, self.header), strict=True))


def open_weights(directory: Path, *, allow: Collection[str] = (), file: str | None = None) -> Weights:
    """The weights of a directory: safetensors, or pickles where `allow` holds "pickle_weights".

    Args:
        file: the safetensors file, or the index of one, that config.json names as `transformers_weights`: transformers
            then reads no other.

    Raises InvalidInput where there are none, they are damaged, or only pickles are there and they are not allowed.
    """
    if file is not None:
        return _named(directory, file)
    names = (safetensors_files.ONE_FILE, safetensors_files.INDEX)
    if any((directory / name).exists() for name in names):
        return safetensors_weights(directory)
    if not has_pickles(directory):
        raise InvalidInput(f"{directory} has no weights: looked for {' and '.join(names)}{_other_weights(directory)}")
    if "pickle_weights" not in allow:
        raise InvalidInput(
            f"{directory} has only pickled weights, and reading a pickle can run code; convert them to safetensors, or "
            "add pickle_weights to `allow` if you trust their author"
        )
    return _pickles(directory)


def _named(directory: Path, file: str) -> Weights:
    if not file.endswith((".safetensors", safetensors_files.INDEX_ENDING)) or not safetensors_files.is_file_name(file):
        raise InvalidInput(
            f"config.json in {directory} gives {file!r} as transformers_weights; that must be a safetensors file in "
            "the same directory, or the index of one"
        )
    return safetensors_weights(directory, file)


def _other_weights(directory: Path) -> str:
    """Files that may be weights, but are not under the names that transformers reads."""
    endings = (".safetensors", INDEX_ENDING, ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
    others = sorted(path.name for path in directory.iterdir() if path.name.endswith(endings))
    return f"; there are {some(others)}, which transformers does not read under these names" if others else ""


def safetensors_weights(directory: Path, file: str | None = None) -> Weights:
    """The weights of safetensors files, see `read_headers`."""
    stored = read_headers(directory, file)
    header = {name: (tensor.shape, tensor.dtype) for name, tensor in stored.items()}
    return Weights(
        header=header,
        tensors=SafetensorsTensors(stored),
        digest=lambda name: stored_digest(stored[name]),
        pickled=False,
    )


def _pickles(directory: Path) -> Weights:
    tensors = read_pickles(directory)
    header = {name: (tuple(tensor.shape), dtype_name(tensor.dtype)) for name, tensor in tensors.items()}
    return Weights(header=header, tensors=tensors, digest=lambda name: tensor_digest(tensors[name]), pickled=True)


def has_pickles(directory: Path) -> bool:
    """Whether there are pickled weights under the names that transformers reads."""
    return (directory / PICKLE_FILE).is_file() or (directory / PICKLE_INDEX).is_file()


def read_pickles(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors, memory-mapped but in torch's old format, which is read into memory.

    Only tensors are unpickled (`weights_only`), never code.
    """
    if (directory / PICKLE_FILE).is_file():
        return _load_pickle(directory / PICKLE_FILE)
    weight_map = read_weight_map(directory / PICKLE_INDEX)
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(set(weight_map.values())):
        tensors.update(_load_pickle(directory / file))
    check_promised(directory / PICKLE_INDEX, weight_map, tensors)
    return tensors


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise InvalidInput(f"cannot read {path}: {first_line(error)}") from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InvalidInput(f"{path} does not hold a dictionary of tensors")
    return content
