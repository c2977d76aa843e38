"""Dropping of elements by their rank in the row, as one formula: eagerly and compiled with the same bits."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 1 << 24  # of the random numbers


def drop_by_rank(
    vector: Tensor, ranks: Tensor, bits: Tensor, *, slope: Tensor | float, least: Tensor | float, divided: bool
) -> Tensor:
    """The elements x of a task vector that are kept with probability p = slope * rank + least, or those by p; else 0.

    Args:
        vector: float32 or float64, not changed.
        ranks: integers, of the same shape.
        bits: 24 random bits of each element, int32.
        divided: whether survivors are divided by p.
    """
    kept = ranks.to(vector.dtype) * slope + least
    dropped = bits.to(vector.dtype) < (1 - kept) * STEPS
    left = vector * torch.where(dropped, 0.0, 1.0).to(vector.dtype)
    return left / torch.where(kept == 0, 1.0, kept) if divided else left  # where p is 0 nothing survives
