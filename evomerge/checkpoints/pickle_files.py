"""PyTorch's older weight files (`pytorch_model.bin`), which are pickles: read only where the user allowed it."""

from __future__ import annotations

import pickle
from pathlib import Path
from zipfile import is_zipfile

import torch

from evomerge.checkpoints.safetensors_files import check_promised, read_weight_map
from evomerge.errors import InvalidInput
from evomerge.messages import one_line

ONE_FILE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"


def has_pickles(directory: Path) -> bool:
    """Whether there are pickled weights under the names that transformers reads."""
    return (directory / ONE_FILE).is_file() or (directory / INDEX).is_file()


def read_pickles(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors, memory-mapped but in torch's old format, which is read into memory.

    Only tensors are unpickled (`weights_only`), never code.
    """
    if (directory / ONE_FILE).is_file():
        return _load(directory / ONE_FILE)
    weight_map = read_weight_map(directory / INDEX)
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(set(weight_map.values())):
        tensors.update(_load(directory / file))
    check_promised(directory / INDEX, weight_map, tensors)
    return tensors


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise InvalidInput(f"cannot read {path}: {one_line(error)}") from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InvalidInput(f"{path} does not hold a dictionary of tensors")
    return content
