"""Two one-sided tests that two models differ by less than a margin (Schuirmann 1987), for right and wrong answers.

Each is the score test of a shifted difference of paired proportions (Tango 1998): the variance is that of the
likeliest shares of wins and losses under which the difference is as large as the margin. Its size is right where few
items differ, too, or it is too cautious there. Several tasks share the shift as likelihood demands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy.special import ndtr

from evomerge.evaluation.aggregates import FloatArray
from evomerge.verdict.sign_flip import Discordance, merged_by_stake

_STEPS: Final = 100
_SETTLED: Final = 1e-12


def equivalence_p(tasks: Sequence[Discordance], margin: float) -> float:
    """p-value that the objectives differ by the margin or more, in either direction: the larger one-sided one.

    Args:
        margin: in units of the objective, positive. One that no difference can reach gives 0.
    """
    reach = math.fsum(task.stake * task.items for task in tasks)  # every item won
    if margin >= reach:
        return 0.0
    merged = merged_by_stake(tasks)
    from_above = ndtr(shifted_score(merged, margin))
    from_below = ndtr(-shifted_score(merged, -margin))
    return float(max(from_above, from_below))


def shifted_score(tasks: Sequence[Discordance], shift: float) -> float:
    """Score statistic that the difference of the objective is `shift`: standard normal if it is (Tango 1998, eq. 13).

    Args:
        shift: a difference that is possible, but for ±(every item won).
    """
    worth = np.array([task.stake * task.items for task in tasks])
    items = np.array([task.items for task in tasks], dtype=np.float64)
    wins = np.array([task.wins for task in tasks], dtype=np.float64)
    losses = np.array([task.losses for task in tasks], dtype=np.float64)
    observed = (wins - losses) / items
    excess = float(worth @ observed) - shift
    shifted = np.full(len(tasks), shift / worth.sum())
    variances = constrained_variances(wins, losses, items, shifted)
    for _ in range(_STEPS if len(tasks) > 1 else 0):
        # Where the likelihood is largest, (observed − shifted) / variance is the same in all tasks, up to their worth.
        wanted = observed - excess * worth * variances / float(worth**2 @ variances)
        moved = np.clip((shifted + wanted) / 2, -1 + _SETTLED, 1 - _SETTLED)
        settled = bool(np.abs(moved - shifted).max() < _SETTLED)
        shifted, variances = moved, constrained_variances(wins, losses, items, moved)
        if settled:
            break
    return excess / math.sqrt(float(worth**2 @ variances))


def constrained_variances(wins: FloatArray, losses: FloatArray, items: FloatArray, shifted: FloatArray) -> FloatArray:
    """Variance of each task's difference, if it is `shifted`, at the likeliest share of discordant items there.

    All are arrays [tasks].
    """
    half = losses + wins - (2 * items - wins + losses) * shifted
    root = np.sqrt(np.maximum(half**2 + 8 * items * losses * shifted * (1 - shifted), 0.0))
    lost = (root + half) / (4 * items)  # (Tango 1998, eq. 10)
    found: FloatArray = np.maximum(2 * lost + shifted - shifted**2, _SETTLED) / items
    return found
