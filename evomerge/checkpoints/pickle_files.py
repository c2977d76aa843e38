"""PyTorch's older weight files (`pytorch_model.bin`), which are pickles: read only where the user allowed it."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch

from evomerge.checkpoints.safetensors_files import read_weight_map
from evomerge.errors import InvalidInput

ONE_FILE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"


def has_pickles(directory: Path) -> bool:
    return any(path.suffix in (".bin", ".pt", ".pth") for path in directory.iterdir())


def read_pickles(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors, memory-mapped. Only tensors are unpickled (`weights_only`), never code."""
    if (directory / ONE_FILE).is_file():
        files = [ONE_FILE]
    elif (directory / INDEX).is_file():
        files = sorted(set(read_weight_map(directory / INDEX).values()))
    else:
        raise InvalidInput(f"{directory} has neither {ONE_FILE} nor {INDEX}")
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors.update(_load(directory / file))
    return tensors


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise InvalidInput(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InvalidInput(f"{path} does not hold a dictionary of tensors")
    return content
