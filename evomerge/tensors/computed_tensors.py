"""Models whose tensors are made anew at every reading, so that they take no memory between two of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class ComputedTensors(Mapping[str, Tensor]):
    """A model by tensor name, some of whose tensors are computed when they are read."""

    @abstractmethod
    def is_computed(self, name: str) -> bool:
        """Whether a tensor is made anew at every reading; otherwise it is the same one every time."""

    @abstractmethod
    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype of a tensor, without making it."""

    def row_blocks(self, name: str) -> range | None:
        """The first rows of the blocks in which a computed tensor can be made; None where it is made as a whole."""
        return None

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """One block of rows of a tensor, with the bits that they have in the whole one."""
        return self[name][start:stop]


def is_computed(model: Mapping[str, Tensor], name: str) -> bool:
    """Whether a tensor of a model is made anew at every reading: then nobody keeps it."""
    return isinstance(model, ComputedTensors) and model.is_computed(name)


def row_blocks(models: Sequence[Mapping[str, Tensor]], name: str) -> range | None:
    """The blocks of rows in which several models can make a tensor; None where one cannot, or none computes it."""
    computed = [model for model in models if isinstance(model, ComputedTensors) and model.is_computed(name)]
    found = {model.row_blocks(name) for model in computed}
    return found.pop() if len(found) == 1 else None


def rows_of(model: Mapping[str, Tensor], name: str, start: int, stop: int) -> Tensor:
    """A block of rows, which is made alone where the tensor is computed. See `ComputedTensors.rows`."""
    if isinstance(model, ComputedTensors) and model.is_computed(name):
        return model.rows(name, start, stop)
    return model[name][start:stop]


def dtype_of(model: Mapping[str, Tensor], name: str) -> torch.dtype:
    """The dtype of a tensor of a model."""
    return model.dtype_of(name) if isinstance(model, ComputedTensors) else model[name].dtype
