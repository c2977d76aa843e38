"""L1 norms of masked task vectors by loops of `masked_passes.cpp`, with the bits of `sums.ordered_sum`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_double, c_int64, c_void_p
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evomerge.native.compiled_loops import (
    LoopTensor,
    Signatures,
    is_covered,
    loop_source,
    loop_tensor,
    loops_of_this_machine,
    share,
)

SOURCE = loop_source("masked_passes.cpp")
WIDTH = 16  # elements of a vector of the loops
SHARED = 1 << 18  # elements that are worth more than one thread
_UNRANKED, _RANKED = 0, 1  # `Ranking` of the loops

_MODEL = POINTER(LoopTensor)
_SIGNATURES: Signatures = {
    "write_magnitudes": (None, (_MODEL, _MODEL, _MODEL, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p)),
    "sum_by_halves": (c_double, (c_void_p, c_int64)),
}


class PieceMask(NamedTuple):
    """The mask of a piece of a flattened tensor, as `tensors.masks` has it.

    Attributes:
        limit: random bits below it mean dropped; 0 drops nothing. Not of what is dropped by rank.
        key_low, key_high, first: words of the hash; `first` is that of the first element's index.
    """

    limit: int
    key_low: int
    key_high: int
    first: int


def masked_norm(
    base: Tensor,
    source: Tensor,
    *,
    piece: int,
    mask: Callable[[int], PieceMask],
    rest: Callable[[int, int], Tensor],
    ranks: Tensor | None = None,
    line: tuple[float, float] = (0.0, 0.0),
) -> float | None:
    """The sum in float64 of |source − base| over what a mask leaves.

    Args:
        piece: elements that are added up together.
        mask: index of the first element of a piece -> its mask.
        rest: (start, stop) -> magnitudes of the last elements of a piece, which are no whole vector.
        ranks: int16 or int32, of elements that are kept with probability slope * rank + least.
        line: (slope, least).

    Returns:
        None where no loop covers these tensors.
    """
    loops = _loops() if is_covered(base, source) else None
    if loops is None:
        return None
    numbers = np.array([0, 0, 1, 1, 0, 0, 0, *line, 0, 0, 0, 0], dtype=np.float32)  # rows of `Numbers`
    ranked = LoopTensor(None, 0) if ranks is None else LoopTensor(ranks.data_ptr(), ranks.dtype == torch.int32)
    models = loop_tensor(base.reshape(-1)), loop_tensor(source.reshape(-1)), ranked
    how = _UNRANKED if ranks is None else _RANKED

    def add(first: int, last: int) -> list[float]:
        magnitudes, sums = np.empty(min(piece, base.numel())), []
        for start in range(first * piece, min(last * piece, base.numel()), piece):
            stop = min(start + piece, base.numel())
            whole = start + (stop - start) // WIDTH * WIDTH
            of_piece = mask(start)
            words = _words(of_piece._replace(first=of_piece.first - start))
            loops.write_magnitudes(
                *models, numbers.ctypes.data, words.ctypes.data, how, start, whole, magnitudes.ctypes.data
            )
            if whole < stop:
                magnitudes[whole - start : stop - start] = rest(whole, stop).numpy()
            sums.append(loops.sum_by_halves(magnitudes.ctypes.data, stop - start))
        return sums

    pieces = -(-base.numel() // piece)
    return sum((each for part in share(add, pieces, worthwhile=-(-SHARED // piece)) for each in part), 0.0)


def _words(values: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.array([value % (1 << 32) for value in values], dtype=np.uint32)


@cache
def _loops() -> ctypes.CDLL | None:
    return loops_of_this_machine(SOURCE, _SIGNATURES, without="norms of masked task vectors take several times as long")
