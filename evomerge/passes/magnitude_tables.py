"""Order statistics of a vector of magnitudes in little memory: any rank becomes a threshold without sorting again.

`make_table` is the definition; `magnitude_sorting` has the same table from compiled loops.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

TOLERANCE = 1e-5  # of the elements of a scope may be kept or dropped wrongly
# Magnitudes that are sorted together, in float32: these, or a part of a larger scope. Each part takes a pass over the
# whole scope. Bounds the memory and time of making a table, not its result.
SORTED_AT_ONCE = 1 << 25
PARTS = 16
# Magnitudes of which each is a knot: a straight line seldom stands for one of so few. Runs of equal ones are shorter.
ALL_KNOTS = 1 << 14
MOST_EQUAL = 1 / 16  # of them; differences of 16-bit weights have more
DIGITS = 1 << 16  # values of the upper sixteen bits of a float32, and of the lower
_INFINITY = np.float32(np.inf)

Floats = npt.NDArray[np.float32]
Ranks = npt.NDArray[np.int64]
Pieces = Callable[[], Iterable[torch.Tensor]]


@dataclass(frozen=True)
class Table:
    """Order statistics of one scope of one source: knots with a straight line between each two, or a step.

    Attributes:
        ranks: counted from 0, increasing; the first is 0 and the last that of the largest element.
        values: the magnitudes of those ranks, float32. With the sign bit set all ranks up to the next knot have the
            same magnitude: differences of 16-bit weights are few numbers, each very often.
    """

    ranks: npt.NDArray[np.int32] | Ranks
    values: Floats

    @property
    def nbytes(self) -> int:
        return self.ranks.nbytes + self.values.nbytes

    def at(self, ranks: Ranks) -> Floats:
        """Thresholds for these ranks: about as many elements are smaller as are smaller than the one of that rank."""
        right = np.searchsorted(self.ranks, ranks)
        left = np.maximum(right - 1, 0)
        low, high = np.abs(self.values[left]), np.abs(self.values[right])
        share = (ranks - self.ranks[left]) / np.maximum(self.ranks[right] - self.ranks[left], 1)
        line = (low.astype(np.float64) + share * (high.astype(np.float64) - low)).astype(np.float32)
        # Never the lower value itself, which may be that of many elements that are not to be kept.
        with np.errstate(over="ignore"):  # what is above the largest float is infinite, and more than `high`
            line = np.minimum(np.maximum(line, np.nextafter(low, np.float32(np.inf))), high)
        between = np.where(np.signbit(self.values[left]), low, line)
        return np.where(self.ranks[right] == ranks, high, between)

    def at_rank(self, rank: int) -> float:
        """`at` for a single rank, to the same bits and several times faster: a candidate asks for hundreds of them."""
        ranks, values = self.ranks.data, self.values.data  # of which the items are plain numbers
        right = bisect_left(ranks, rank)
        high = abs(values[right])
        if right == 0 or ranks[right] == rank:
            return high
        before, first = values[right - 1], ranks[right - 1]
        low = abs(before)
        if math.copysign(1.0, before) < 0:
            return low
        line = float(np.float32(low + (rank - first) / (ranks[right] - first) * (high - low)))
        return min(line if line > low else float(np.nextafter(np.float32(low), _INFINITY)), high)

    def run(self, rank: int) -> tuple[int, int]:
        """First and last rank, from 0, of the magnitude at a rank, as far as the table has a step there."""
        values = self.values.data
        right = bisect_left(self.ranks.data, rank)
        knot = right if self.ranks[right] == rank else right - 1
        if knot < right and not _is_step(values[knot]):
            return rank, rank
        while knot and _is_step(values[knot - 1]) and abs(values[knot - 1]) == abs(values[knot]):
            knot -= 1
        if not _is_step(values[knot]):
            return rank, rank
        first = int(self.ranks[knot])
        while _is_step(values[knot]) and abs(values[knot + 1]) == abs(values[knot]):
            knot += 1
        return first, int(self.ranks[knot + 1]) - 1 if _is_step(values[knot]) else int(self.ranks[knot])


def _is_step(value: float) -> bool:
    return math.copysign(1.0, value) < 0


def sorted_together(elements: int) -> int:
    """Number of magnitudes that are sorted together in a scope of this many elements."""
    return min(elements, max(SORTED_AT_ONCE, elements // PARTS))


class Limits(NamedTuple):
    """Numbers of elements that decide the knots of a table.

    Attributes:
        spacing: of the fine knots, of which those that are needed are kept.
        longest_run: of equal values that need no step.
        allowed: error at a fine knot.
    """

    spacing: int
    longest_run: float
    allowed: float

    @classmethod
    def of(cls, elements: int) -> Limits:
        wrong = TOLERANCE * elements
        return cls(max(1, int(wrong / 8)), max(1.0, wrong * 3 / 8), wrong / 2)


def make_table(magnitudes: Pieces, elements: int) -> Table:
    """Build the table of a scope.

    Between two fine knots the error is at most that at the knots, plus the elements between them, plus the longest run
    of equal values that is no step: with the shares below that is TOLERANCE.

    Args:
        magnitudes: a function that returns the pieces of the scope, float32 and not negative, the same at each call.
        elements: how many there are in all.
    """
    if all_are_knots(elements) and (whole := of_all_knots(_sorted(magnitudes(), elements))) is not None:
        return whole
    limits = Limits.of(elements)
    ranks, values = _fine_knots(magnitudes, elements, limits.spacing)
    chosen = _thinned(ranks, values, longest_run=limits.longest_run, allowed=limits.allowed)
    return with_steps(ranks[chosen], values[chosen])


def _fine_knots(magnitudes: Pieces, elements: int, spacing: int) -> tuple[Ranks, Floats]:
    """(rank, value) of every `spacing`-th element in order of magnitude, and the first and last rank of its value."""
    limit = sorted_together(elements)
    if elements <= limit:
        return _knots(_sorted(magnitudes(), elements), 0, spacing)
    # Non-negative floats have the order of their bits read as integers: parts are ranges of the upper sixteen.
    counts = torch.zeros(DIGITS, dtype=torch.int64)
    for piece in magnitudes():
        counts += torch.bincount(piece.view(torch.int32) >> 16, minlength=DIGITS).cpu()
    ranks: list[Ranks] = []
    values: list[Floats] = []
    start = 0
    for first, last, held in digit_ranges(counts.tolist(), limit):
        if held > limit:
            found = knots_of_digit(first, _lower_counts(magnitudes(), first), start, spacing)
        else:
            # A value is never in two parts, so that the first and the last of its rank are in this one.
            found = _knots(_sorted((_in_digits(piece, first, last) for piece in magnitudes()), held), start, spacing)
        ranks.append(found[0])
        values.append(found[1])
        start += held
    return np.concatenate(ranks), np.concatenate(values)


def _knots(part: Floats, start: int, spacing: int) -> tuple[Ranks, Floats]:
    """The fine knots of magnitudes in ascending order, of which the first has rank `start`."""
    found = np.unique(part[_wanted(len(part), start, spacing)])
    ends = np.stack([np.searchsorted(part, found, "left"), np.searchsorted(part, found, "right") - 1], axis=1)
    ranks = np.unique(ends.ravel())
    return ranks + start, part[ranks]


def knots_of_digit(digit: int, lower_counts: Ranks, start: int, spacing: int) -> tuple[Ranks, Floats]:
    """The fine knots of all magnitudes with the same upper sixteen bits, which are too many to be sorted together.

    Weights that no training has changed are such a case: their magnitudes are all 0.

    Args:
        digit: the upper sixteen bits.
        lower_counts: [65536], how many have each value of the lower sixteen.
        start: rank of the first.
    """
    ends = np.cumsum(lower_counts)
    at = np.unique(np.searchsorted(ends, _wanted(int(ends[-1]), start, spacing), "right"))
    ranks, index = np.unique(np.stack([ends[at] - lower_counts[at], ends[at] - 1], axis=1).ravel(), return_index=True)
    bits = (np.uint32(digit << 16) | at.astype(np.uint32)).view(np.float32)
    return ranks + start, np.repeat(bits, 2)[index]


def _wanted(count: int, start: int, spacing: int) -> Ranks:
    """Places of the fine knots among magnitudes of which the first has rank `start`: their ends are two of them."""
    return np.concatenate([[0], np.arange(-start % spacing, count, spacing), [count - 1]])


def _lower_counts(pieces: Iterable[torch.Tensor], digit: int) -> Ranks:
    counts = torch.zeros(DIGITS, dtype=torch.int64)
    for piece in pieces:
        bits = piece.view(torch.int32)
        counts += torch.bincount(bits[bits >> 16 == digit] & (DIGITS - 1), minlength=DIGITS).cpu()
    lower: Ranks = counts.numpy()
    return lower


def _in_digits(piece: torch.Tensor, first: int, last: int) -> torch.Tensor:
    digits = piece.view(torch.int32) >> 16
    return piece[(digits >= first) & (digits <= last)]


def digit_ranges(counts: Sequence[int], limit: int) -> Iterator[tuple[int, int, int]]:
    """First digit, last digit and number of elements of ranges that hold some: at most `limit`, or a single digit."""
    first, held = 0, 0
    for digit, count in enumerate(counts):
        if held and held + count > limit:
            yield first, digit - 1, held
            held = 0
        if not held:
            first = digit
        held += count
    if held:
        yield first, len(counts) - 1, held


def _sorted(pieces: Iterable[torch.Tensor], elements: int) -> Floats:
    """The elements of all pieces in ascending order, gathered in one new buffer."""
    whole, filled = torch.empty(elements), 0
    for piece in pieces:
        whole[filled : filled + len(piece)] = piece
        filled += len(piece)
    array: Floats = whole.numpy()
    array.sort()  # numpy sorts in place and without indices: a fifth of the memory of torch's
    return array


def _thinned(ranks: Ranks, values: Floats, longest_run: float, allowed: float) -> Ranks:
    """Positions of the knots that are needed for thresholds with an error of at most `allowed` elements at each knot.

    The error of a threshold is the difference between the number of smaller elements and the number that there should
    be. Both ends of every run of more than `longest_run` equal values are kept.
    """
    first = np.searchsorted(values, values, "left")
    last = np.searchsorted(values, values, "right") - 1
    kept = ranks[last] - ranks[first] >= longest_run
    kept[[0, -1]] = True
    while True:
        chosen = np.flatnonzero(kept)
        thresholds = Table(ranks[chosen], values[chosen]).at(ranks)
        smaller = np.append(ranks, ranks[-1] + 1)[np.searchsorted(values, thresholds, "left")]
        wrong = np.flatnonzero((np.abs(smaller - ranks[first]) > allowed) & ~kept)
        if not len(wrong):
            return chosen
        stretch = np.unique(np.searchsorted(chosen, wrong))
        kept[(chosen[stretch - 1] + chosen[stretch]) // 2] = True


def all_are_knots(elements: int) -> bool:
    """Whether a scope of so many elements has each as a knot, unless many are equal."""
    return 0 < elements <= ALL_KNOTS


def of_all_knots(ordered: Floats) -> Table | None:
    """The table of magnitudes in ascending order, each of them a knot; None where many are equal, or one is NaN."""
    level = _level(ordered)
    if level.sum() > len(ordered) * MOST_EQUAL or np.isnan(ordered[-1]):
        return None
    return Table(_every_rank(len(ordered)), np.where(level, -ordered, ordered))


def _level(values: Floats) -> npt.NDArray[np.bool_]:
    """A mask of the values, in ascending order, that the next one equals."""
    return np.append(values[1:] == values[:-1], False)


@lru_cache(maxsize=256)
def _every_rank(count: int) -> npt.NDArray[np.int32]:
    """The ranks from 0 on, which all tables with so many knots share."""
    ranks = np.arange(count, dtype=np.int32)
    ranks.setflags(write=False)
    return ranks


def with_steps(ranks: Ranks, values: Floats) -> Table:
    """The table of these knots: runs of equal values become steps, and an end of a step that the next knot shows is
    left out."""
    level = _level(values)
    shown = np.append(np.diff(ranks) == 1, False) & np.append(False, level[:-1]) & ~level
    ranks, values = ranks[~shown], np.where(level, -values, values)[~shown]
    return Table(ranks.astype(np.int32) if ranks[-1] < 1 << 31 else ranks, values)
