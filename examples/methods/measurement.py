"""Figures of several seeds or items, their intervals, and whether a claim holds by them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
HOLDS, FAILS, OPEN, INFO = "holds", "does not hold", "cannot be told", "no claim"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its 95 % confidence interval, by Student's t."""

    mean: float
    low: float
    high: float

    def text(self, scale: float = 100.0, digits: int = 1) -> str:
        mean, low, high = (scale * value for value in (self.mean, self.low, self.high))
        if math.isinf(low):
            return f"{mean:.{digits}f} [one seed]"
        return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: a claim and its paper, the figures, the seeds or items behind them, and the verdict."""

    claim: str
    paper: str
    measured: str
    units: str
    verdict: str


def interval(values: Sequence[float]) -> Interval:
    """The mean of the values with its interval; with one value there is none."""
    found = np.asarray(values, dtype=np.float64)
    mean = float(found.mean())
    if len(found) < 2:
        return Interval(mean=mean, low=float("-inf"), high=float("inf"))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(found) - 1) * found.std(ddof=1) / len(found) ** 0.5)
    return Interval(mean=mean, low=mean - half, high=mean + half)


def above(difference: Interval, threshold: float = 0.0) -> str:
    """Verdict on a difference that should be above the threshold."""
    if difference.low > threshold:
        return HOLDS
    return FAILS if difference.high <= threshold else OPEN


def between(found: Interval, low: float, high: float) -> str:
    """Verdict on a figure that should be between two numbers."""
    if low < found.low and found.high < high:
        return HOLDS
    return FAILS if found.high < low or found.low > high else OPEN


def compared(
    claim: str, paper: str, names: tuple[str, str], values: tuple[Sequence[float], Sequence[float]], units: str
) -> Row:
    """A row that says whether the first of two is above the second: accuracies of the same seeds or items."""
    first, second = (interval(each).mean for each in values)
    difference = interval([one - other for one, other in zip(*values, strict=True)])
    measured = f"{names[0]} {100 * first:.1f}, {names[1]} {100 * second:.1f}: difference {difference.text()}"
    return Row(claim=claim, paper=paper, measured=measured, units=units, verdict=above(difference))


def equal(
    claim: str,
    paper: str,
    names: tuple[str, str],
    values: tuple[Sequence[float], Sequence[float]],
    units: str,
    margin: float = 0.01,
) -> Row:
    """A row that says whether two are equal within a margin."""
    first, second = (interval(each).mean for each in values)
    difference = interval([one - other for one, other in zip(*values, strict=True)])
    measured = f"{names[0]} {100 * first:.1f}, {names[1]} {100 * second:.1f}: difference {difference.text()}"
    claim = f"{claim} (within {100 * margin:g} points)"
    return Row(claim=claim, paper=paper, measured=measured, units=units, verdict=between(difference, -margin, margin))
