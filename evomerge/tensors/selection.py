"""SCE's selection by variance and merge of what is selected, with the same bits eagerly and compiled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.tensors.sums import added

LEAST_DIVISOR = 1e-6


def variance(vectors: Sequence[Tensor]) -> Tensor:
    """The population variance over the vectors, by element."""
    count = vectors[0].new_full((), len(vectors))  # a device would multiply by the inverse of a Python number
    mean = added(vectors) / count
    return added([(vector - mean).square() for vector in vectors]) / count


def select(
    vectors: Sequence[Tensor], varied: Tensor, least: Tensor | float, *, tied_out: Tensor | None = None
) -> list[Tensor]:
    """The vectors with 0 where the variance is below the least one, or equal to it and `tied_out` says so. NaN stays.

    Args:
        varied: the variance.
    """
    dropped = varied < least
    if tied_out is not None:
        dropped = dropped | ((varied == least) & tied_out)
    return [torch.where(dropped, 0.0, vector) for vector in vectors]


def merge_selected(
    selected: Sequence[Tensor], shares: Sequence[Tensor | float], *, zero_is_positive: bool = False
) -> Tensor:
    """(4) and (5) of `sce.merge_sce`, without the base. NaN is never erased."""
    total = added(selected)
    if zero_is_positive:
        total = torch.where(total < 0, -1.0, 1.0)
    kept = [
        torch.where(each * total <= 0, 0.0, 1.0).to(each.dtype) * share
        for each, share in zip(selected, shares, strict=True)
    ]
    merged = added([weight * each for weight, each in zip(kept, selected, strict=True)])
    return merged / added(kept).clamp(min=LEAST_DIVISOR)
