"""Confidence interval of the difference between right and wrong answers: the test that gives the p-value, inverted.

The test says that no item is won more often than lost. Shifted, it says that in every task the share of items that are
won exceeds the share of lost ones by the same number; the interval holds the shifts that it does not reject. At 0 that
is the exact test itself. At other shifts it is the score test that the exact one becomes with many items: the
difference over its standard error at the likeliest shares of wins and losses with that shift (Tango 1998, eq. 13).
Where the two do not agree on 0, the score is scaled on that side so that it has the exact p-value there (a test-based
interval: Miettinen 1976). An interval therefore excludes 0 exactly where the p-value is below its level.

A task of one item or a handful can be missed by any such interval: nobody knows from them how its items vary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri

from evomerge.evaluation.aggregates import FloatArray
from evomerge.verdict.equivalence import constrained_variances
from evomerge.verdict.sign_flip import Discordance, difference, merged_by_stake
from evomerge.verdict.verdict import CONFIDENCE

_EDGE: Final = 1e-9  # share of the reach that is left at both ends, where nothing varies
_STEPS: Final = 33  # of the search for an end
_BEYOND: Final = 1e-12  # share of the reach that an end is away from 0 at least, where 0 is excluded


_Score = Callable[[FloatArray], FloatArray]


def interval(tasks: Sequence[Discordance], p: float) -> tuple[float, float]:
    """The differences of the objective, from the smallest to the largest, that are not rejected at `CONFIDENCE`.

    Args:
        p: two-sided p-value of these tasks, see `evomerge.verdict.sign_flip.sign_flip`.
    """
    merged = merged_by_stake(tasks)
    reach = math.fsum(task.stake * task.items for task in merged)  # every item won
    observed = difference(merged)
    if observed < 0:
        low, high = _ends(_score(merged, -1.0, reach), -observed, p, reach)
        return -high, -low
    return _ends(_score(merged, 1.0, reach), observed, p, reach)


def _score(tasks: Sequence[Discordance], sign: float, reach: float) -> _Score:
    """The score statistic of shifts, standard normal if they are true; of the models exchanged where the sign is −1."""
    worth = np.array([task.stake * task.items for task in tasks])
    items = np.array([task.items for task in tasks], dtype=np.float64)
    counts = np.array([(task.wins, task.losses) for task in tasks], dtype=np.float64)
    wins, losses = counts.T if sign > 0 else counts.T[::-1]
    observed = float(worth @ ((wins - losses) / items))

    def score(shifts: FloatArray) -> FloatArray:
        variances = constrained_variances(wins, losses, items, shifts[:, None] / reach)
        found: FloatArray = (observed - shifts) / np.sqrt(variances @ worth**2)
        return found

    return score


def _ends(score: _Score, observed: float, p: float, reach: float) -> tuple[float, float]:
    """Both ends, where the difference is not negative."""
    quantile, edge = float(ndtri((1 + CONFIDENCE) / 2)), (1 - _EDGE) * reach
    high = _outermost(score, -quantile, edge, observed, reach)
    at_zero, exact = float(score(np.zeros(1))[0]), -float(ndtri(p / 2))
    if p < 1 - CONFIDENCE:
        value = quantile if at_zero > quantile else quantile * at_zero / exact
        return max(_outermost(score, value, 0.0, observed, 0.0), _BEYOND * reach), high
    if at_zero > quantile:
        quantile *= at_zero / exact if exact > 0 else math.inf
    return min(_outermost(score, quantile, -edge, observed, -reach), 0.0), high


def _outermost(score: _Score, value: float, outer: float, inner: float, end: float) -> float:
    """The shift of that score which is nearest to `outer`, on the way to `inner`; `end` where `outer` is within it.

    A score falls with the shift, but for tasks of very few items, whose spread depends on the shift itself.
    """
    shifts = np.linspace(outer, inner, _STEPS)
    within = (score(shifts) <= value) if outer < inner else (score(shifts) >= value)
    if within[0]:
        return end
    if not within.any():
        return inner
    first = int(np.argmax(within))
    root = brentq(lambda shift: score(np.array([shift]))[0] - value, shifts[first - 1], shifts[first], xtol=1e-14)
    return float(root)
