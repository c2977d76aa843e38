"""Tables of magnitudes by compiled loops: those of `magnitude_tables.make_table`, to the same bits, many times faster.

The loops are those of `magnitude_sorting.cpp`, compiled once per machine; without a C++ compiler `make_table` serves.
"""

from __future__ import annotations

import ctypes
import logging
import subprocess
from collections.abc import Iterator
from ctypes import c_double, c_int64, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from evomerge.passes.kernels import compiled_library
from evomerge.passes.magnitude_tables import (
    Floats,
    Limits,
    Pieces,
    Ranks,
    Table,
    digit_ranges,
    make_table,
    sorted_together,
    with_steps,
)

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".cpp")
DIGITS = 1 << 16
SHORT = 1 << 14  # numpy sorts so few in less time than it takes to count their digits
INFINITY_BITS = 0x7F80_0000

_SIGNATURES = {
    "count_digits": (c_uint32, (c_void_p, c_int64, c_void_p)),
    "scatter": (None, (c_void_p, c_int64, c_uint32, c_uint32, c_void_p, c_void_p)),
    "sort_digits": (None, (c_void_p, c_void_p, c_uint32, c_uint32, c_void_p)),
    "find_knots": (c_int64, (c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p)),
    "thin": (None, (c_void_p, c_void_p, c_int64, c_double, c_double, c_void_p)),
}


def fast_table(magnitudes: Pieces, elements: int) -> Table:
    """The table of a scope, by the compiled loops where there are some. See `make_table`."""
    loops = this_machines_loops()
    table = None if loops is None or elements == 0 else loops.table(magnitudes, elements)
    return make_table(magnitudes, elements) if table is None else table


@cache
def this_machines_loops() -> Loops | None:
    """The loops, compiled unless they are in the cache folder. None: there is no compiler, and a warning was logged."""
    try:
        return Loops(compiled_library(SOURCE))
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        logger.warning(
            "threshold tables are made several times slower: their loops cannot be compiled here (%s)", error
        )
        return None


class Loops:
    """The functions of `magnitude_sorting.cpp`."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: of the compiled library.

        Raises:
            OSError, AttributeError: it is no library, or another one.
        """
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        self._library = library

    def table(self, magnitudes: Pieces, elements: int) -> Table | None:
        """As `make_table`; None where a magnitude is infinite or NaN, whose order is left to the definition."""
        limits = Limits.of(elements)
        ranks: list[Ranks] = []
        values: list[Floats] = []
        start = 0
        for part in self._sorted_parts(magnitudes, elements):
            if part is None:
                return None
            found = self._knots(part, start, limits.spacing)
            ranks.append(found[0])
            values.append(found[1])
            start += len(part)
        return self._thinned(_joined(ranks), _joined(values), limits)

    def _sorted_parts(self, magnitudes: Pieces, elements: int) -> Iterator[Floats | None]:
        if elements <= SHORT:
            whole = torch.cat([piece.cpu() for piece in magnitudes()]).numpy()
            whole.sort()
            yield whole if np.isfinite(whole[-1]) else None
            return
        counts, largest = np.zeros(DIGITS, np.int64), 0
        for piece in _on_cpu(magnitudes):
            largest = max(largest, self._library.count_digits(piece.data_ptr(), len(piece), counts.ctypes.data))
        if largest >= INFINITY_BITS:
            yield None
            return
        limit = sorted_together(elements)
        used = np.flatnonzero(counts)
        whole_range = [(int(used[0]), int(used[-1]), elements)]
        for first, last, held in whole_range if elements <= limit else digit_ranges(counts.tolist(), limit):
            yield self._sorted(magnitudes, counts, first, last, held)

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
