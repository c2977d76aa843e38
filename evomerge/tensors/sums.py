"""Sums that do not depend on the number of threads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def ordered_sum(pieces: Iterable[Tensor]) -> float:
    """The sum of all elements in float64, in an order that is fixed by the pieces alone.

    `torch.sum` splits a long vector over its threads, so that its last bits depend on their number, and a candidate
    scored with one thread would differ from the same candidate exported with eight. Halving the vector again and again
    needs nothing but element-wise additions.
    """
    return sum((_halved(piece.reshape(-1).to(torch.float64)) for piece in pieces), 0.0)


def _halved(values: Tensor) -> float:
    while values.numel() > 1:
        half = values.numel() // 2
        rest = values[2 * half :]
        values = values[:half] + values[half : 2 * half]
        if rest.numel():
            values = torch.cat([values, rest])
    return float(values) if values.numel() else 0.0


def ordered_row_sums(rows: Tensor) -> Tensor:
    """The sum of each row of a matrix [rows, width], in float64 and in an order that is fixed by the width alone."""
    values = rows.to(torch.float64)
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        rest = values[:, 2 * half :]
        values = torch.cat([values[:, :half] + values[:, half : 2 * half], rest], 1)
    return values[:, 0]


def added(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape, in their order; a single one as it is."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total
