"""Order statistics over a scope of tensors, without sorting.

Non-negative IEEE numbers have the order of their bit patterns read as integers, negative ones the opposite order. So
the k-th smallest number is found 16 bits at a time: count how many have each value of the leading digit, descend into
the digit in which the k-th falls, and count the next digit among those alone. That is exact, needs one histogram of
65 536 counts and no second copy of the scope, and has no limit on the number of elements, at which routines that return
a k-th value fail.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from evomerge.native.ranked_magnitudes import Ranked

FEW = 1 << 16  # magnitudes are gathered instead of counted
GATHERED = 1 << 23  # numbers at most around one expected rank
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}

Vector = Callable[[int, str], Iterator[Tensor]]
"""(source, tensor name) -> the pieces of that source's vector in element order, float32 or float64."""


class Thresholds(Protocol):
    """Order statistics of task vectors, looked up instead of counted."""

    def kth_magnitude(self, source: int, scope: tuple[str, ...], k: int) -> float:
        """The k-th smallest |theta_source - theta_0| over all elements of the tensors in `scope`.

        Args:
            source: position of the source.
            scope: tensor names in alphabetical order.
            k: counted from 1, at most the number of elements in scope.
        """
        ...

    def ties_from(self, source: int, scope: tuple[str, ...], k: int) -> int | None:
        """The number of elements of this magnitude from the k-th on, which is one of them; None: the first of them."""
        ...

    def exact_magnitudes(self, source: int, name: str, ranks: Sequence[int]) -> list[Ranked] | None:
        """The exact magnitudes of some ranks, counted from 1, of one tensor; None: they have to be counted."""
        ...


class Cut(NamedTuple):
    """The condition under which an element of one tensor survives trimming.

    Attributes:
        threshold: larger magnitudes survive.
        ties: of the elements exactly at the threshold this many survive, lowest index first; None: all.
    """

    threshold: float
    ties: int | None = None


KEEP_ALL = Cut(0.0)
KEEP_NOTHING = Cut(math.inf)


class CountedThresholds:
    """The definition: exact order statistics, counted anew for each question."""

    def __init__(self, vector: Vector, dtype: Callable[[Sequence[str]], torch.dtype]) -> None:
        self._vector = vector
        self._dtype = dtype

    def kth_magnitude(self, source: int, scope: tuple[str, ...], k: int) -> float:
        """As in `Thresholds`, of the vectors that this object was built for."""
        return kth_smallest_magnitude(
            lambda: (piece for name in scope for piece in self._vector(source, name)), k, self._dtype(scope)
        )

    def ties_to_keep(self, source: int, scope: tuple[str, ...], threshold: float, kept: int) -> dict[str, int]:
        """For each tensor the number of elements at the threshold that survive, so that the scope keeps exactly `kept`.

        Ties are kept lowest index first, in the order of `scope`.
        """
        larger, equal = 0, dict.fromkeys(scope, 0)
        for name in scope:
            for piece in self._vector(source, name):
                magnitude = piece.abs()
                larger += int((magnitude > threshold).count_nonzero())
                equal[name] += int((magnitude == threshold).count_nonzero())
        return _first(kept - larger, equal)

    def divided(self, source: int, scope: tuple[str, ...], threshold: float, ties: int) -> dict[str, int]:
        """The same for a number of ties that is known."""
        if len(scope) == 1:
            return {scope[0]: ties}
        equal = dict.fromkeys(scope, 0)
        for name in scope:
            for piece in self._vector(source, name):
                equal[name] += int((piece.abs() == threshold).count_nonzero())
        return _first(ties, equal)


def end_of_equal(pieces: Iterable[Tensor], value: float, count: int) -> int:
    """The index, over all pieces in order, after the count-th element that is equal to a value; for none of them 0."""
    start = 0
    if not count:
        return 0
    for piece in pieces:
        equal = piece == value
        found = int(equal.count_nonzero())
        if found >= count:
            return start + int(equal.nonzero()[count - 1]) + 1
        count, start = count - found, start + piece.numel()
    return start


def _first(left: int, equal: dict[str, int]) -> dict[str, int]:
    """A number of elements divided among tensors, as many to each as it has, the first tensors first."""
    divided = {}
    for name, count in equal.items():
        divided[name] = min(left, count)
        left -= divided[name]
    return divided


def kth_smallest_magnitude(pieces: Callable[[], Iterable[Tensor]], k: int, dtype: torch.dtype) -> float:
    """The k-th smallest absolute value (k counts from 1) of the elements of all pieces.

    Args:
        pieces: returns the same pieces at each call; it is called once per 16 bits.
        dtype: float32 or float64, at least as wide as the pieces.

    Raises:
        ValueError: there are fewer than k elements, or k < 1.
    """
    few = _gathered(pieces(), FEW)
    if few is not None and 1 <= k <= len(few):  # in one pass, without histograms that are larger than the vector
        return float(np.partition(few.to(dtype).numpy(), k - 1)[k - 1])
    return order_statistics(lambda: ([piece.abs()] for piece in pieces()), [[k]], dtype)[0][0]


def order_statistics(
    pieces: Callable[[], Iterable[Sequence[Tensor]]], ranks: Sequence[Sequence[int]], dtype: torch.dtype
) -> list[list[float]]:
    """Several order statistics of several vectors, all in the same passes.

    Args:
        pieces: returns the same pieces at each call, each a tensor of every vector; it is called once per 16 bits.
        ranks: for each vector the k of its k-th smallest numbers, k from 1.
        dtype: float32 or float64, at least as wide as the pieces.

    Returns:
        For each vector the numbers of its ranks.

    Raises:
        ValueError: there are fewer than k elements, or k < 1.
    """
    digits = 4 if dtype == torch.float64 else 2
    searches = [[_RankSearch(k) for k in each] for each in ranks]
    for digit in range(digits - 1, -1, -1):
        counts: list[dict[int | None, Tensor]] = [
            {search.prefix: torch.zeros(1 << 16, dtype=torch.int64) for search in each} for each in searches
        ]
        for vectors in pieces():
            for vector, counted in zip(vectors, counts, strict=True):
                bits = vector.to(dtype).contiguous().view(_INTEGERS[dtype])
                for prefix, total in counted.items():
                    total += _next_digits(bits, prefix, 16 * digit)
        for each, counted in zip(searches, counts, strict=True):
            for search in each:
                search.descend(counted[search.prefix])
    return [[_number(search.prefix or 0, dtype) for search in each] for each in searches]


def expected_order_statistics(
    pieces: Callable[[], Iterable[Sequence[Tensor]]],
    ranks: Sequence[int],
    dtype: torch.dtype,
    *,
    elements: int,
    sample: Iterable[Sequence[Tensor]],
    signed: bool = True,
) -> list[list[float]]:
    """The same as `order_statistics` with the same ranks for every vector, as a rule in a single pass.

    A sample tells where the numbers are to be expected: what is there is gathered, and what is smaller is counted. When
    a number is found to be elsewhere `order_statistics` serves. The sample decides the time and never the result.

    Args:
        elements: of each vector.
        sample: pieces with some elements of each vector, spread over all of it; at least one piece.
        signed: whether there may be negative numbers, and with them zeros of both signs.
    """
    samples = [np.sort(torch.cat(parts).to("cpu", dtype).numpy()) for parts in zip(*sample, strict=True)]
    searches = [_ExpectedRanks(ranks, elements, each, signed) for each in samples]
    for vectors in pieces():
        for vector, search in zip(vectors, searches, strict=True):
            search.see(vector.to("cpu", dtype).numpy())
    found = [search.numbers() for search in searches]
    if any(each is None for each in found):
        return order_statistics(pieces, [ranks] * len(samples), dtype)
    return [each for each in found if each is not None]


class _ExpectedRanks:
    """The numbers of some ranks of a vector, looked for where a sorted sample of it has about the same ranks."""

    def __init__(self, ranks: Sequence[int], elements: int, sample: npt.NDArray[Any], signed: bool) -> None:
        self._ranks = ranks
        self._ranges = [_expected_range(k / max(elements, 1), elements, sample) for k in ranks]
        self._smaller = [0] * len(ranks)
        self._gathered: list[npt.NDArray[Any]] = []
        self._signed, self._ordered, self._room = signed, True, GATHERED

    def see(self, numbers: npt.NDArray[Any]) -> None:
        self._ordered = self._ordered and not np.isnan(numbers.max(initial=-math.inf))
        wanted = np.zeros(len(numbers), dtype=np.bool_)
        for place, (low, high) in enumerate(self._ranges):
            inside = numbers >= low
            self._smaller[place] += len(numbers) - int(np.count_nonzero(inside))
            inside &= numbers <= high
            wanted |= inside
        if self._room >= 0:
            self._gathered.append(numbers[np.flatnonzero(wanted)])  # faster than by flags, where they are few
            self._room -= len(self._gathered[-1])

    def numbers(self) -> list[float] | None:
        """None: one of them is elsewhere, or too many are where they were expected; or comparing does not order them,
        because of NaN or of zeros of both signs."""
        gathered = np.concatenate(self._gathered) if self._gathered else np.empty(0)
        found: list[float] = []
        for k, smaller, (low, high) in zip(self._ranks, self._smaller, self._ranges, strict=True):
            own, rank = gathered[(gathered >= low) & (gathered <= high)], k - smaller
            if not self._ordered or self._room < 0 or not 1 <= rank <= len(own):
                return None
            found.append(float(np.partition(own, rank - 1)[rank - 1]))
        return None if self._signed and 0 in found else found


def _expected_range(share: float, elements: int, sample: npt.NDArray[Any]) -> tuple[float, float]:
    """Bounds between which the number of a rank, given as a share, is all but sure to be."""
    size = len(sample)
    deviation = math.sqrt(max(share * (1 - share), 0.0) / max(size, 1))
    margin = 5 * deviation + min(2e-3, 1e6 / max(elements, 1))  # elements of one place are alike, not a random sample
    first, last = math.floor((share - margin) * size), math.ceil((share + margin) * size)
    return sample[first] if first > 0 else -math.inf, sample[last] if last < size else math.inf


def _gathered(pieces: Iterable[Tensor], most: int) -> Tensor | None:
    """The absolute values of all pieces as one vector on the CPU; None where there are more than `most` or none."""
    found: list[Tensor] = []
    for piece in pieces:
        most -= piece.numel()
        if most < 0:
            return None
        found.append(piece.abs().reshape(-1).cpu())
    return torch.cat(found) if found else None


class _RankSearch:
    """The k-th smallest key, found digit by digit.

    Attributes:
        prefix: the digits that are known, as one signed number in the order of the numbers; None before the first.
        rank: of the key among those with these digits, counted from 1.
    """

    def __init__(self, k: int) -> None:
        self.prefix: int | None = None
        self.rank = self.k = k

    def descend(self, counts: Tensor) -> None:
        """Add the digit in which the key is, given how many keys with the known digits have each next digit."""
        cumulative = counts.cumsum(0)
        if not 1 <= self.rank <= int(cumulative[-1]):
            raise ValueError(f"there is no {self.k}-th smallest of {int(cumulative[-1])} elements")
        digit = int(torch.searchsorted(cumulative, self.rank))
        self.rank -= int(cumulative[digit - 1]) if digit else 0
        self.prefix = digit - (1 << 15) if self.prefix is None else self.prefix << 16 | digit


def _next_digits(bits: Tensor, prefix: int | None, shift: int) -> Tensor:
    """Counts of the values of the digit at bit `shift`, among the numbers with the digits `prefix`: int64 [65536].

    Digits count in the order of the numbers: those after the sign of a negative one are inverted. It is the counts that
    are put in that order, and not the bits of every number.
    """
    if prefix is None:
        counts = torch.bincount((bits >> shift) + (1 << 15), minlength=1 << 16).cpu()
        return torch.cat([counts[: 1 << 15].flip(0), counts[1 << 15 :]])
    stored = prefix if prefix >= 0 else _inverted(prefix, bits.itemsize * 8 - shift - 16)
    if bits.device.type == "cpu":
        numbers = bits.numpy()  # which selects few of many several times faster
        chosen = torch.from_numpy(numbers[numbers >> (shift + 16) == stored])
    else:
        chosen = bits[bits >> (shift + 16) == stored]
    counts = torch.bincount((chosen >> shift) & 0xFFFF, minlength=1 << 16).cpu()
    return counts if prefix >= 0 else counts.flip(0)


def _inverted(digits: int, width: int) -> int:
    """A negative signed number of `width` bits with all bits after the sign inverted. It is its own inverse."""
    return digits ^ ((1 << (width - 1)) - 1)


def _number(key: int, dtype: torch.dtype) -> float:
    """The number whose digits, in the order of the numbers, are `key`."""
    raw = key if key >= 0 else _inverted(key, dtype.itemsize * 8)
    return float(torch.tensor(raw, dtype=_INTEGERS[dtype]).view(dtype))


def trim(vector: Tensor, cut: Cut) -> tuple[Tensor, Cut]:
    """A piece of a flattened tensor with what does not survive set to zero, and the cut for the piece that follows it.

    NaN survives every cut, so that it is seen in the result. The argument may be returned as it is.
    """
    if cut == KEEP_ALL:
        return vector, cut
    if cut.ties is None:
        # hardshrink keeps what is strictly larger, hence the number just below; it is one pass instead of four.
        threshold = torch.tensor(cut.threshold, dtype=vector.dtype)
        return hardshrink(vector, float(torch.nextafter(threshold, torch.zeros_like(threshold)))), cut
    magnitude = vector.abs()
    tied = magnitude == cut.threshold
    kept = tied & (tied.cumsum(0) <= cut.ties)
    return vector * (kept | (magnitude > cut.threshold)), Cut(cut.threshold, cut.ties - int(kept.count_nonzero()))
