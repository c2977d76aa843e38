"""Tables of magnitudes by compiled loops: those of `magnitude_tables.make_table`, to the same bits, many times faster.

The loops are those of `magnitude_sorting.cpp`, compiled once per machine; without a C++ compiler `make_table` serves.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import c_double, c_int64, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from evomerge.native.compiled_loops import load_loops, loop_source, loops_of_this_machine
from evomerge.passes.magnitude_tables import (
    DIGITS,
    Floats,
    Limits,
    Pieces,
    Ranks,
    Table,
    all_are_knots,
    digit_ranges,
    knots_of_digit,
    make_table,
    of_all_knots,
    sorted_together,
    with_steps,
)

SOURCE = loop_source("magnitude_sorting.cpp")
SHORT = 1 << 14  # numpy sorts so few in less time than it takes to count their digits
INFINITY_BITS = 0x7F80_0000

_SIGNATURES = {
    "count_digits": (c_uint32, (c_void_p, c_int64, c_void_p)),
    "count_lower": (None, (c_void_p, c_int64, c_uint32, c_void_p)),
    "scatter": (None, (c_void_p, c_int64, c_uint32, c_uint32, c_void_p, c_void_p)),
    "sort_digits": (None, (c_void_p, c_void_p, c_uint32, c_uint32, c_void_p)),
    "find_knots": (c_int64, (c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p)),
    "thin": (None, (c_void_p, c_void_p, c_int64, c_double, c_double, c_void_p)),
    "sort_whole": (c_uint32, (c_void_p, c_int64, c_void_p, c_void_p)),
    "whole_table": (c_int64, (c_void_p, c_int64, c_double, c_double, *(c_void_p,) * 5)),
}


class Desk:
    """Memory for making tables, kept from one to the next: pages that are new to a process cost more than sorting."""

    def __init__(self) -> None:
        self._arrays: dict[str, npt.NDArray[Any]] = {}

    def array(self, name: str, count: int, dtype: type[np.generic]) -> npt.NDArray[Any]:
        """An array with any content, the same at the next call with that name."""
        if name not in self._arrays or len(self._arrays[name]) < count:
            self._arrays[name] = np.empty(count, dtype)
        return self._arrays[name][:count]


def fast_table(magnitudes: Pieces, elements: int, desk: Desk | None = None) -> Table:
    """The table of a scope, by the compiled loops where there are some. See `make_table`."""
    loops = this_machines_loops()
    table = None if loops is None or elements == 0 else loops.table(magnitudes, elements, desk or Desk())
    return make_table(magnitudes, elements) if table is None else table


@cache
def this_machines_loops() -> Loops | None:
    """The loops, compiled unless they are in the cache folder. None: there is no compiler, and a warning was logged."""
    library = loops_of_this_machine(SOURCE, _SIGNATURES, without="threshold tables are made several times slower")
    return None if library is None else Loops(library)


class Loops:
    """The functions of `magnitude_sorting.cpp`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    @classmethod
    def from_file(cls, path: Path) -> Loops:
        """Those of a compiled library.

        Raises:
            OSError, AttributeError: it is no library, or another one.
        """
        return cls(load_loops(path, _SIGNATURES))

    def table(self, magnitudes: Pieces, elements: int, desk: Desk) -> Table | None:
        """As `make_table`; None where a magnitude is infinite or NaN, whose order is left to the definition."""
        limits = Limits.of(elements)
        if limits.spacing == 1 and (elements <= SHORT or elements <= sorted_together(elements)):
            return self._whole_table(magnitudes, elements, limits, desk)
        counts, largest = np.zeros(DIGITS, np.int64), 0
        for piece in _on_cpu(magnitudes):
            largest = max(largest, self._library.count_digits(piece.data_ptr(), len(piece), counts.ctypes.data))
        if largest >= INFINITY_BITS:
            return None
        return self._thinned(*self._fine_knots(magnitudes, counts, limits.spacing), limits)

    def _whole_table(self, magnitudes: Pieces, elements: int, limits: Limits, desk: Desk) -> Table | None:
        """The table of a scope in which every magnitude counts: they are computed once and stay together."""
        found, filled = desk.array("found", elements, np.float32), 0
        for piece in _on_cpu(magnitudes):
            found[filled : filled + len(piece)] = piece.numpy()
            filled += len(piece)
        ordered = found
        if elements <= SHORT:
            found.sort()
            if not np.isfinite(found[-1]):
                return None
            if all_are_knots(elements) and (whole := of_all_knots(found)) is not None:
                return whole
        else:
            ordered = desk.array("ordered", elements, np.float32)
            rooms = [desk.array("digits", 2 * DIGITS, np.uint32), ordered]
            largest = self._library.sort_whole(found.ctypes.data, elements, *(each.ctypes.data for each in rooms))
            if largest >= INFINITY_BITS:
                return None
        ranks = desk.array("ranks", elements, np.int32)
        rooms = [desk.array(name, elements, np.float32) for name in ("values", "above", "below")]
        kept = desk.array("kept", elements, np.bool_)
        given = ordered.ctypes.data, elements, limits.longest_run, limits.allowed
        count = self._library.whole_table(*given, *(each.ctypes.data for each in (ranks, *rooms, kept)))
        return Table(ranks[:count].copy(), rooms[0][:count].copy())

    def _fine_knots(self, magnitudes: Pieces, counts: Ranks, spacing: int) -> tuple[Ranks, Floats]:
        elements = int(counts.sum())
        limit = sorted_together(elements)
        used = np.flatnonzero(counts)
        whole_range = [(int(used[0]), int(used[-1]), elements)]
        ranks: list[Ranks] = []
        values: list[Floats] = []
        start = 0
        for first, last, held in whole_range if elements <= limit else digit_ranges(counts.tolist(), limit):
            if held > limit:
                found = knots_of_digit(first, self._lower_counts(magnitudes, first), start, spacing)
            else:
                found = self._knots(self._sorted(magnitudes, counts, first, last, held), start, spacing)
            ranks.append(found[0])
            values.append(found[1])
            start += held
        return _joined(ranks), _joined(values)

    def _lower_counts(self, magnitudes: Pieces, digit: int) -> Ranks:
        """[65536], how many magnitudes with these upper sixteen bits have each value of the lower sixteen."""
        counts = np.zeros(DIGITS, np.int64)
        for piece in _on_cpu(magnitudes):
            self._library.count_lower(piece.data_ptr(), len(piece), digit, counts.ctypes.data)
        return counts

    def _sorted(self, magnitudes: Pieces, counts: Ranks, first: int, last: int, held: int) -> Floats:
        """All magnitudes whose upper sixteen bits are from `first` to `last`, in order."""
        part, places = np.empty(held, np.float32), np.zeros(DIGITS, np.int64)
        places[first + 1 : last + 1] = np.cumsum(counts[first:last])
        for piece in _on_cpu(magnitudes):
            self._library.scatter(piece.data_ptr(), len(piece), first, last, places.ctypes.data, part.ctypes.data)
        scratch = np.empty(counts[first : last + 1].max(), np.uint32)
        self._library.sort_digits(part.ctypes.data, counts.ctypes.data, first, last, scratch.ctypes.data)
        return part

    def _knots(self, part: Floats, start: int, spacing: int) -> tuple[Ranks, Floats]:
        room = min(len(part), 2 * (len(part) // spacing + 3))
        ranks, values = np.empty(room, np.int64), np.empty(room, np.float32)
        found = self._library.find_knots(
            part.ctypes.data, len(part), start, spacing, ranks.ctypes.data, values.ctypes.data
        )
        return ranks[:found], values[:found]

    def _thinned(self, ranks: Ranks, values: Floats, limits: Limits) -> Table:
        kept = np.empty(len(ranks), np.bool_)
        self._library.thin(
            ranks.ctypes.data, values.ctypes.data, len(ranks), limits.longest_run, limits.allowed, kept.ctypes.data
        )
        return with_steps(ranks[kept], values[kept])


def _joined(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _on_cpu(magnitudes: Pieces) -> Iterator[torch.Tensor]:
    for piece in magnitudes():
        yield piece.cpu().contiguous()
