"""Models whose tensors are made anew at every reading, so that they take no memory between two of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

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


def is_computed(model: Mapping[str, Tensor], name: str) -> bool:
    """Whether a tensor of a model is made anew at every reading: then nobody keeps it."""
    return isinstance(model, ComputedTensors) and model.is_computed(name)


def dtype_of(model: Mapping[str, Tensor], name: str) -> torch.dtype:
    """The dtype of a tensor of a model."""
    return model.dtype_of(name) if isinstance(model, ComputedTensors) else model[name].dtype
