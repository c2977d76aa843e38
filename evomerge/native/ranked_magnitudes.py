"""Exact magnitudes of given ranks of a task vector, in one pass: looked for where a table of thresholds expects them.

What is smaller or larger than expected is counted, and the few between are gathered. Where the magnitude turns out to
be elsewhere the caller counts digits (`evomerge.tensors.order_statistics`). On a CPU the pass is a compiled loop of
`ranked_magnitudes.cpp`; elsewhere, and without a compiler, torch makes it operation by operation, with the same result.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int64, c_void_p
from functools import cache
from typing import NamedTuple

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

SOURCE = loop_source("ranked_magnitudes.cpp")
SHARED = 1 << 18  # elements that are worth more than one thread
TOGETHER = 1 << 24  # elements that torch computes at once
ROOM = 1 << 12  # gathered magnitudes of a range, and
SHARE_OF_ROOM = 1 << 12  # one more for so many elements


class Ranked(NamedTuple):
    """The magnitude of a rank of a task vector, how many are smaller, and how many are as large, itself included."""

    value: float
    smaller: int
    equal: int


class Expected(NamedTuple):
    """A rank, counted from 1, and the range in which its magnitude is expected, both ends included."""

    rank: int
    low: float
    high: float


class _Range(ctypes.Structure):
    """`Range` of the loop."""

    _fields_ = [
        *((name, c_float) for name in ("low", "high")),
        *((name, c_int64) for name in ("smaller", "at_low", "inside", "at_high", "larger")),
        ("gathered", c_void_p),
        ("room", c_int64),
    ]


_ELEMENTS = (POINTER(LoopTensor), POINTER(LoopTensor), c_int64, c_int64)
_SIGNATURES: Signatures = {
    "see_ranges": (None, (*_ELEMENTS, POINTER(_Range), c_int64)),
    "equal_between": (c_int64, (*_ELEMENTS, c_float)),
    "end_of_equal": (c_int64, (*_ELEMENTS, c_float, c_int64)),
}


class _Seen(NamedTuple):
    """Numbers of magnitudes below, at the ends of and above a range, and those strictly between, in any order."""

    smaller: int
    at_low: int
    between: Tensor
    at_high: int
    larger: int

    def ranked(self, expected: Expected, elements: int) -> Ranked | None:
        """None: the magnitude is elsewhere, or what was counted is not all, because of NaN or for want of room."""
        counts = self.smaller, self.at_low, len(self.between), self.at_high
        if sum(counts) + self.larger != elements:
            return None
        rank = expected.rank - self.smaller
        if 1 <= rank <= self.at_low:
            return Ranked(expected.low, self.smaller, self.at_low)
        rank -= self.at_low
        if 1 <= rank <= len(self.between):
            value = self.between.kthvalue(rank).values
            smaller = int((self.between < value).count_nonzero())
            return Ranked(float(value), sum(counts[:2]) + smaller, int((self.between == value).count_nonzero()))
        if 1 <= rank - len(self.between) <= self.at_high:
            return Ranked(expected.high, sum(counts[:3]), self.at_high)
        return None


def ranked_magnitudes(base: Tensor, source: Tensor, expected: Sequence[Expected]) -> list[Ranked] | None:
    """The magnitudes |source − base| of some ranks, in float32.

    Args:
        base, source: of one shape, of any float type that float32 holds.

    Returns:
        In the order of `expected`; None where one of them is not where it is expected.
    """
    loops = _loops() if is_covered(base, source) else None
    seen = _seen_by_torch(base, source, expected) if loops is None else _seen(loops, base, source, expected)
    found = [each.ranked(wanted, base.numel()) for each, wanted in zip(seen, expected, strict=True)]
    return None if None in found else [each for each in found if each is not None]


def end_of_equal(base: Tensor, source: Tensor, value: float, count: int) -> int | None:
    """The index after the count-th element whose magnitude |source − base| is a value, of at least as many.

    Returns:
        None where no loop covers these tensors.
    """
    loops = _loops() if is_covered(base, source) else None
    if loops is None:
        return None
    models = loop_tensor(base), loop_tensor(source)

    def equal(start: int, stop: int) -> tuple[int, int, int]:
        return start, stop, loops.equal_between(*models, start, stop, value)

    if base.numel() < 2 * SHARED or torch.get_num_threads() == 1:
        return int(loops.end_of_equal(*models, 0, base.numel(), value, count))
    for start, stop, found in share(equal, base.numel(), worthwhile=SHARED):
        if found >= count:
            return int(loops.end_of_equal(*models, start, stop, value, count))
        count -= found
    return base.numel()


@cache
def _loops() -> ctypes.CDLL | None:
    return loops_of_this_machine(SOURCE, _SIGNATURES, without="bounds of magnitudes take several times as long")


def _seen(loops: ctypes.CDLL, base: Tensor, source: Tensor, expected: Sequence[Expected]) -> list[_Seen]:
    models = loop_tensor(base), loop_tensor(source)
    room = ROOM + base.numel() // SHARE_OF_ROOM

    def see(start: int, stop: int) -> list[_Seen]:
        gathered = torch.empty(len(expected), room)
        ranges = (_Range * len(expected))()
        for each, wanted, place in zip(ranges, expected, gathered, strict=True):
            each.low, each.high, each.gathered, each.room = wanted.low, wanted.high, place.data_ptr(), room
        loops.see_ranges(*models, start, stop, ranges, len(expected))
        return [
            _Seen(each.smaller, each.at_low, place[: each.inside], each.at_high, each.larger)
            for each, place in zip(ranges, gathered, strict=True)
        ]

    return _together(share(see, base.numel(), worthwhile=SHARED))


def _seen_by_torch(base: Tensor, source: Tensor, expected: Sequence[Expected]) -> list[_Seen]:
    flat_base, flat_source = base.reshape(-1), source.reshape(-1)
    parts = []
    for start in range(0, base.numel(), TOGETHER):
        piece = slice(start, start + TOGETHER)
        magnitudes = (flat_source[piece].to(base.device).float() - flat_base[piece].float()).abs_()
        parts.append([_seen_in(magnitudes, each) for each in expected])
    return _together(parts)


def _seen_in(magnitudes: Tensor, expected: Expected) -> _Seen:
    low, high = expected.low, expected.high
    between = magnitudes[(magnitudes > low) & (magnitudes < high)]
    ends = (magnitudes < low, magnitudes == low, (magnitudes == high) & (high > low), magnitudes > high)
    smaller, at_low, at_high, larger = torch.stack([each.count_nonzero() for each in ends]).tolist()
    return _Seen(smaller, at_low, between, at_high, larger)


def _together(parts: Sequence[Sequence[_Seen]]) -> list[_Seen]:
    """The counts of each range over all parts of a tensor."""
    if len(parts) == 1:
        return list(parts[0])
    return [
        _Seen(
            sum(each.smaller for each in seen),
            sum(each.at_low for each in seen),
            torch.cat([each.between for each in seen]),
            sum(each.at_high for each in seen),
            sum(each.larger for each in seen),
        )
        for seen in zip(*parts, strict=True)
    ]
