"""Order statistics of magnitudes over a scope of tensors, without sorting.

Non-negative IEEE numbers have the order of their bit patterns read as integers. So the k-th smallest magnitude is found
16 bits at a time: count how many have each value of the leading digit, descend into the digit in which the k-th falls,
and count the next digit among those alone. That is exact, needs one histogram of 65 536 counts and no second copy of
the scope, and has no limit on the number of elements, at which routines that return a k-th value fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

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


class Cut(NamedTuple):
    """The condition under which an element of one tensor survives trimming.

    Attributes:
        threshold: larger magnitudes survive.
        ties: of the elements exactly at the threshold this many survive, lowest index first; None: all.
    """

    threshold: float
    ties: int | None = None


KEEP_ALL = Cut(0.0)


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
        left = kept - larger
        ties = {}
        for name in scope:
            ties[name] = min(left, equal[name])
            left -= ties[name]
        return ties


def kth_smallest_magnitude(pieces: Callable[[], Iterable[Tensor]], k: int, dtype: torch.dtype) -> float:
    """The k-th smallest absolute value (k counts from 1) of the elements of all pieces.

    Args:
        pieces: returns the same pieces at each call; it is called once per 16 bits.
        dtype: float32 or float64, at least as wide as the pieces.

    Raises:
        ValueError: there are fewer than k elements, or k < 1.
    """
    width, integer = (64, torch.int64) if dtype == torch.float64 else (32, torch.int32)
    prefix, rank = 0, k
    for shift in range(width - 16, -1, -16):
        counts = torch.zeros(1 << 16, dtype=torch.int64)
        for piece in pieces():
            digits = piece.to(dtype).abs().view(integer)
            if shift + 16 < width:
                digits = digits[(digits >> (shift + 16)) == prefix]
            counts += torch.bincount((digits >> shift) & 0xFFFF, minlength=1 << 16).cpu()
        cumulative = counts.cumsum(0)
        if not 1 <= rank <= int(cumulative[-1]):
            raise ValueError(f"there is no {k}-th smallest of {int(cumulative[-1])} elements")
        digit = int(torch.searchsorted(cumulative, rank))
        rank -= int(cumulative[digit - 1]) if digit else 0
        prefix = prefix << 16 | digit
    return float(torch.tensor(prefix, dtype=integer).view(dtype))


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
