"""The difference of the objective between two models on the same items, with the test that fits the outcomes.

- Outcomes 0 or 1, objective a weighted mean: an exact test on the discordant items (`sign_flip`).
- Anything else whose value can be recomputed from the items: the paired bootstrap (`bootstrap`).
- That they differ by less than a margin: a score test of the shifted difference (`equivalence`), or the same bootstrap.
- A metric that is aggregated by a task's own function, or fewer than two items to resample: no test, named "none".
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from evomerge.errors import InvalidInput
from evomerge.evaluation.aggregates import CUSTOM, MEANS, RECOMPUTED, WEIGHTED, is_mean
from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.objective import Objective
from evomerge.verdict import bootstrap, sign_flip
from evomerge.verdict.bootstrap import TaskPair
from evomerge.verdict.equivalence import equivalence_p
from evomerge.verdict.score_interval import interval
from evomerge.verdict.sign_flip import Discordance

POWER = 0.8
_FEWEST = 10  # items that differ, below which resamples show nothing of the rare ones that a margin may rest on
_NOTHING = 1e-12  # relative difference of two values that only rounding tells apart


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """The difference of the objective, first model − second, and its test.

    Attributes:
        difference: as scored.
        low, high: 95 % confidence interval; None without a test.
        p: two-sided; None without a test.
        test: "McNemar", "sign flip", "paired bootstrap" or "none".
        items, discordant: number of items that were compared, and of those whose outcomes differ.
        null_variance, variance: of the difference with as many items: if the models were equal, and as observed.
        equivalence_p: that the difference is the margin or more in either direction; None without a margin or a test,
            and where fewer than ten real-valued outcomes differ.
        signal, parts: of minima of several tasks, which are compared task by task, see `bootstrap.Resampled`.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    test: str
    items: int
    discordant: int
    null_variance: float | None = None
    variance: float | None = None
    equivalence_p: float | None = None
    signal: float | None = None
    parts: int = 1

    def items_needed(self, level: float) -> int | None:
        """Number of such items, shared among the tasks as here, that shows this difference with 80 % power.

        Connor (1987), eq. 5, for a two-sided test at `level`; None where the first model is not ahead. It takes the
        observed difference for the true one, and so is no better known than that: a guide, not a promise.
        """
        if self.difference <= 0 or self.null_variance is None or self.variance is None:
            return None
        if self.signal is not None:
            return _as_number(self.items * ((ndtri(1 - level / 2 / self.parts) + ndtri(POWER)) / self.signal) ** 2)
        reach = float(ndtri(1 - level / 2)) * math.sqrt(self.null_variance) + float(ndtri(POWER)) * math.sqrt(
            self.variance
        )
        ratio = reach / self.difference
        needed = self.items * ratio * ratio  # (Connor 1987, eq. 5)
        if self.test in sign_flip.TESTS and self.discordant:
            # However one-sided, this many coins are needed before all of them on one side are rare enough.
            needed = max(needed, math.ceil(1 - math.log2(level)) * self.items / self.discordant)
        return _as_number(needed)


def _as_number(items: float) -> int:
    return max(1, math.ceil(min(items, 1e15)))


def paired_difference(
    first: Scores, second: Scores, objective: Objective, *, seed: int, margin: float | None = None
) -> PairedDifference:
    """Compare two models on the same items.

    Args:
        margin: in units of the objective, below which two models are equivalent; None where that is not asked.
        seed: key of resamples, where the test needs some.

    Raises:
        InvalidInput: the scores are not of the same tasks and items, or of none.
    """
    pairs = _pair(first, second)
    items = sum(pair.items for pair in pairs.values())
    discordant = sum(int(np.count_nonzero(pair.first != pair.second)) for pair in pairs.values())
    difference = subtract(objective.value(first), objective.value(second))
    gains = objective.gains(first)
    if gains is not None and all(pair.kind in MEANS and _is_binary(pair) for pair in pairs.values()):
        tasks = [_discordance(pair, gains[task]) for task, pair in pairs.items()]
        test, p = sign_flip.sign_flip(tasks, seed)
        low, high = interval(tasks, p)
        null_variance, variance = sign_flip.variances(tasks)
        return PairedDifference(
            difference=difference,
            low=low,
            high=high,
            p=p,
            test=test,
            items=items,
            discordant=discordant,
            null_variance=null_variance,
            variance=variance,
            equivalence_p=None if margin is None else equivalence_p(tasks, margin),
        )
    if all(pair.kind in RECOMPUTED and pair.resamples for pair in pairs.values()):
        resampled = bootstrap.resample(pairs, first, objective, seed)
        if resampled.finite:
            low, high = resampled.interval()
            variance = resampled.variance
            return PairedDifference(
                difference=difference,
                low=low,
                high=high,
                p=resampled.p(),
                test="paired bootstrap",
                items=items,
                discordant=discordant,
                null_variance=variance,
                variance=variance,
                equivalence_p=None if margin is None or discordant < _FEWEST else resampled.equivalence_p(margin),
                signal=resampled.signal if resampled.parts > 1 else None,
                parts=resampled.parts,
            )
    return PairedDifference(
        difference=difference, low=None, high=None, p=None, test="none", items=items, discordant=discordant
    )


def subtract(first: float, second: float) -> float:
    """First − second; 0 where they differ by rounding, and the largest number where one of them is infinite."""
    if first == second or math.isclose(first, second, rel_tol=_NOTHING, abs_tol=_NOTHING):
        return 0.0
    largest = sys.float_info.max
    return min(largest, max(-largest, first - second))


def _pair(first: Scores, second: Scores) -> dict[str, TaskPair]:
    if set(first.tasks) != set(second.tasks) or not first.tasks:
        raise InvalidInput(
            f"the winner has scores of tasks {sorted(first.tasks)}, the other of {sorted(second.tasks)}; only the same "
            "tasks can be compared, one at least; score both again"
        )
    return {task: _pair_task(task, first.tasks[task], second.tasks[task]) for task in first.tasks}


def _pair_task(task: str, first: TaskScores, second: TaskScores) -> TaskPair:
    positions = _positions(task, first.items, second.items)
    if (first.metric, first.higher_is_better, first.aggregate) != (
        second.metric,
        second.higher_is_better,
        second.aggregate,
    ):
        raise InvalidInput(
            f"task {task!r} was scored by {first.metric!r} ({first.aggregate}) and by {second.metric!r} "
            f"({second.aggregate}); only scores of one metric can be compared; score both again"
        )
    ours, theirs = np.array(first.outcomes, dtype=np.float64), np.array(second.outcomes, dtype=np.float64)
    weights = None
    if first.weights is not None and second.weights is not None:
        weights = (np.array(first.weights), np.array(second.weights))
    if positions is not None:
        theirs = theirs[positions]
        weights = (weights[0], weights[1][positions]) if weights else None
    kind = first.aggregate
    if kind == CUSTOM and is_mean(first.value, ours) and is_mean(second.value, theirs):
        kind = "mean"
    if kind in WEIGHTED and weights is None:
        kind = CUSTOM  # written before weights were stored: as unknown as any other
    return TaskPair(kind=kind, first=ours, second=theirs, weights=weights)


def _positions(task: str, first: tuple[int, ...], second: tuple[int, ...]) -> list[int] | None:
    """Positions of the first model's items among those of the second; None where the order is the same."""
    if first == second and first:
        return None
    if set(first) != set(second) or not first or len(first) != len(second):
        only = len(set(first) ^ set(second))
        raise InvalidInput(
            f"task {task!r} has {len(first)} items of the winner and {len(second)} of the other, {only} of them of one "
            "only; a paired comparison needs the same items, one at least; score both again"
        )
    where = {item: position for position, item in enumerate(second)}
    return [where[item] for item in first]


def _is_binary(pair: TaskPair) -> bool:
    return all(bool(((outcomes == 0) | (outcomes == 1)).all()) for outcomes in (pair.first, pair.second))


def _discordance(pair: TaskPair, gain: float) -> Discordance:
    up, down = int(np.count_nonzero(pair.first > pair.second)), int(np.count_nonzero(pair.first < pair.second))
    wins, losses = (up, down) if gain > 0 else (down, up)
    return Discordance(stake=abs(gain) / pair.items, items=pair.items, wins=wins, losses=losses)
