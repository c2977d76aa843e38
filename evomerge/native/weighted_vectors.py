"""Sums of weighted task vectors, and the slopes of their weights: one compiled pass over memory each.

A training makes both of every tensor at every step, and what they cost is reading base and sources: operation by
operation about twice as much as in one loop. The loops are those of `weighted_vectors.cpp`; without a compiler, and for
tensors that they do not cover, the caller goes on operation by operation.

Covered: contiguous tensors on a CPU in float32 or bfloat16, in any mixture, with one weight for all of a tensor, one
per row or one per column. Neither bits nor sums depend on the number of threads.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from ctypes import POINTER, c_int64, c_void_p
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evomerge.native.compiled_loops import (
    LoopTensor,
    is_covered,
    loop_source,
    loop_tensor,
    loops_of_this_machine,
    share,
)

SOURCE = loop_source("weighted_vectors.cpp")
BLOCK = 1 << 16  # products that are added up together where all of a tensor has one weight
BLOCK_ROWS = 256  # likewise by column
SHARED = 1 << 18  # elements that are worth more than one thread

_MODEL = POINTER(LoopTensor)
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "write_sum": (
        None,
        (_MODEL, _MODEL, c_int64, c_void_p, c_int64, c_int64, c_int64, c_int64, c_int64, _MODEL),
    ),
    "row_sums": (None, (_MODEL, _MODEL, _MODEL, c_int64, c_int64, c_int64, c_int64, c_int64, c_void_p)),
    "column_sums": (None, (_MODEL, _MODEL, _MODEL, c_int64, c_int64, c_int64, c_int64, c_int64, c_int64, c_void_p)),
}


def write_weighted_sum(target: Tensor, base: Tensor | None, sources: Sequence[Tensor], factors: Tensor) -> bool:
    """Write W_0 + sum_i f_i (W_i - W_0) into a tensor, or without a base sum_i f_i W_i.

    The bits are those of `column_arithmetic` and `column_linear`, in the order of the sources.

    Args:
        factors: float32 [n sources, *shape], with a shape that broadcasts to the target's.

    Returns:
        False where nothing was written, because no loop covers these tensors.
    """
    layout = _Layout.of(factors.shape[1:], target.shape)
    loops = _loops(target, base, sources)
    if layout is None or loops is None or factors.dtype != torch.float32 or factors.device != target.device:
        return False
    given = factors.detach().reshape(len(sources), -1).contiguous()
    models = loop_tensor(base), (LoopTensor * len(sources))(*map(loop_tensor, sources)), len(sources)
    spread = given.data_ptr(), given.shape[1], layout.by_column, layout.columns
    out = loop_tensor(target)
    share(lambda start, stop: loops.write_sum(*models, *spread, start, stop, out), target.numel(), worthwhile=SHARED)
    return True


def factor_slopes(
    gradient: Tensor, base: Tensor | None, sources: Sequence[Tensor], shape: Sequence[int]
) -> Tensor | None:
    """dL/df_i = sum over the broadcast dimensions of dL/dW (W_i - W_0), or without a base of dL/dW W_i.

    Args:
        gradient: dL/dW.
        shape: of a factor f_i; it broadcasts to W.

    Returns:
        [n sources, *shape] in float64: sums in float64 of sums in float32 of at most 65,536 products. None where no
        loop covers these tensors.
    """
    layout = _Layout.of(shape, gradient.shape)
    loops = _loops(gradient, base, sources)
    if layout is None or loops is None:
        return None
    add = _column_sums if layout.by_column else _row_sums
    models = (
        loop_tensor(gradient),
        loop_tensor(base),
        (LoopTensor * len(sources))(*map(loop_tensor, sources)),
        len(sources),
    )
    return add(loops, models, layout.columns, gradient.numel()).reshape(len(sources), *shape)


class _Layout(NamedTuple):
    """A tensor as rows of `columns` elements, with a factor per column or one for each row."""

    columns: int
    by_column: bool

    @classmethod
    def of(cls, factor: Sequence[int], full: Sequence[int]) -> _Layout | None:
        """The layout for factors of a shape; None where they vary otherwise, or there are no elements."""
        spread, elements = (1,) * (len(full) - len(factor)) + tuple(factor), math.prod(full)
        if not elements:
            return None
        if math.prod(spread) == 1:
            return cls(elements, False)
        if math.prod(spread) == spread[-1]:
            return cls(full[-1], True)
        return cls(elements // full[0], False) if math.prod(spread) == spread[0] else None


@cache
def _compiled() -> ctypes.CDLL | None:
    return loops_of_this_machine(SOURCE, _SIGNATURES, without="weights are learned at about four fifths of the speed")


def _loops(tensor: Tensor, base: Tensor | None, sources: Sequence[Tensor]) -> ctypes.CDLL | None:
    """The loops, where they cover these tensors."""
    every = [tensor, *([] if base is None else [base]), *sources]
    return _compiled() if is_covered(*every) and all(each.shape == tensor.shape for each in every) else None


def _row_sums(loops: ctypes.CDLL, models: tuple[Any, ...], columns: int, elements: int) -> Tensor:
    """float64 [n sources, rows], from gradient, base, sources and their number."""
    is_whole = columns == elements
    length = min(columns, BLOCK) if is_whole else columns
    totals = torch.empty(-(-elements // length), models[-1], dtype=torch.float64)

    def add(start: int, stop: int) -> None:
        loops.row_sums(*models, length, elements, start, stop, totals.data_ptr())

    share(add, len(totals), worthwhile=-(-SHARED // length))
    if not is_whole:
        return totals.T
    return torch.tensor([math.fsum(each) for each in totals.T.tolist()], dtype=torch.float64)


def _column_sums(loops: ctypes.CDLL, models: tuple[Any, ...], columns: int, elements: int) -> Tensor:
    """float64 [n sources, columns], likewise."""
    rows = elements // columns
    totals = torch.empty(-(-rows // BLOCK_ROWS), models[-1], columns)

    def add(start: int, stop: int) -> None:
        loops.column_sums(*models, columns, rows, BLOCK_ROWS, start, stop, totals.data_ptr())

    share(add, len(totals), worthwhile=-(-SHARED // (BLOCK_ROWS * columns)))
    whole = totals[0].double()
    for block in totals[1:]:
        whole += block
    return whole
