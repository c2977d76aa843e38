"""Candidates that have been tried on items they were not trained on, and the simplest that is as good as the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.learned.learned_settings import Granularity


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A candidate with its losses on items that it was not trained on.

    Attributes:
        granularity: of its coefficients; None for the start, which has learned none.
        penalty: factor of the squared distance from the start.
        steps: after which the losses are the least.
        losses: one for each unit: the items of a source that one fold keeps for stopping.
    """

    granularity: Granularity | None
    penalty: float
    steps: int
    losses: tuple[float, ...]

    def mean(self, shares: Sequence[float]) -> float:
        """The mean loss; the shares of the units sum to 1."""
        return math.fsum(share * loss for share, loss in zip(shares, self.losses, strict=True))


def simplest_of_the_best(tried: Sequence[Tried], shares: Sequence[float]) -> Tried:
    """The first candidate whose mean loss is at most one standard error above the least (Breiman et al. 1984, 3.4.3).

    The error is that of the paired difference: what is hard in a unit is hard for all candidates.

    Args:
        tried: the simplest first.
        shares: of each unit in the mean; they sum to 1.
    """
    best = min(tried, key=lambda each: each.mean(shares))
    return next(each for each in tried if is_as_good(each, best, shares))


def is_as_good(one: Tried, other: Tried, shares: Sequence[float]) -> bool:
    """Whether the mean loss of one is at most a standard error of the paired difference above that of another."""
    differences = [a - b for a, b in zip(one.losses, other.losses, strict=True)]
    mean = math.fsum(share * each for share, each in zip(shares, differences, strict=True))
    return mean <= _standard_error(differences, mean, shares)


def _standard_error(differences: Sequence[float], mean: float, shares: Sequence[float]) -> float:
    """Of a weighted mean; 0 with one unit, which tells nothing of the spread."""
    count = len(differences)
    if count < 2:
        return 0.0
    spread = math.fsum((share * (each - mean)) ** 2 for share, each in zip(shares, differences, strict=True))
    return math.sqrt(spread * count / (count - 1))
