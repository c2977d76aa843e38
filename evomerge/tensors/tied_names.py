"""Names that share one tensor in every model: tied weights, which count once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def canonical_names(models: Sequence[Mapping[str, Tensor]]) -> dict[str, str]:
    """name -> the alphabetically first name of the same tensor in every model; names are those of the first model."""
    template = models[0]
    first: dict[tuple[Any, ...], str] = {}
    canonical = {}
    for name in sorted(template):
        identity = tuple(_identity(model[name]) for model in models)
        # Tensors without elements all have the null address.
        canonical[name] = first.setdefault(identity, name) if template[name].numel() else name
    return canonical


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.device, tensor.dtype, tuple(tensor.shape), tensor.stride()
