"""Paired bootstrap: for real-valued outcomes, and for objectives and aggregates that are no mean.

Items are drawn again with replacement, the same ones for both models and within each task, and the difference of the
objective is computed as if they had been the data (Efron & Tibshirani 1993). Two corrections keep the level with few
items: each task draws one item fewer than it has, which makes the variance unbiased (Rao & Wu 1988), and the tails are
read where Student's t has them, not the normal distribution (Hesterberg 2015, section 5.3, "expanded percentile").
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from evomerge.evaluation.aggregates import FloatArray, aggregates, from_means
from evomerge.evaluation.scores import Scores
from evomerge.objective import Objective
from evomerge.seeding import derive

DRAWS: Final = 9_999
_FEW_KINDS: Final = 64  # different pairs of outcomes, up to which counts of them are drawn, not items
_AT_ONCE: Final = 2_000_000  # drawn items held in memory


@dataclass(frozen=True, kw_only=True)
class TaskPair:
    """The outcomes of two models on the same items of a task.

    Attributes:
        kind: the task's aggregation, one of `evomerge.evaluation.aggregates.RECOMPUTED`.
        first, second: outcomes, arrays [items].
        weights: of the items for both models, arrays [items]; None where the aggregation has none.
    """

    kind: str
    first: FloatArray
    second: FloatArray
    weights: tuple[FloatArray, FloatArray] | None = None

    @property
    def items(self) -> int:
        return len(self.first)

    @property
    def resamples(self) -> bool:
        """Whether items can be drawn: two or more, none of them infinitely bad."""
        return self.items > 1 and bool(np.isfinite(self.first).all() and np.isfinite(self.second).all())


@dataclass(frozen=True, kw_only=True)
class Resampled:
    """The difference of the objective in every resample.

    Attributes:
        differences: an array [draws].
        freedom: number of items − tasks.
        smooth: whether the objective varies smoothly with every item, so that its tails are nearly normal; a median
            jumps from one outcome to the next.
    """

    differences: FloatArray
    freedom: int
    smooth: bool = True

    @property
    def variance(self) -> float:
        return float(self.differences.var(ddof=1))

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.differences).all())

    def p(self) -> float:
        """Two-sided p-value that the difference is 0: the level at which the interval would just touch 0."""
        return min(1.0, 2 * min(self.at_most(0.0), self.negated().at_most(0.0)))

    def equivalence_p(self, margin: float) -> float:
        """p-value that the difference is the margin or more, in either direction: the level at which the interval would
        just touch the margin, of the nearer side."""
        return max(self.at_most(-margin), self.negated().at_most(-margin))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The expanded percentile interval: the differences that the test does not reject. It excludes 0 exactly where
        the p-value is below 1 − level."""
        return self.low(1 - level), -self.negated().low(1 - level)

    def negated(self) -> Resampled:
        """The difference with the models exchanged."""
        return replace(self, differences=-self.differences)

    def at_most(self, limit: float) -> float:
        """One-sided p-value that the difference is `limit` or less.

        The resamples there are counted with the observed one added, so that it is never 0. Without any, the normal
        distribution of the resamples continues beyond what so many draws can show: later looks test at levels below
        that. It does so as far as the signs of so many items allow, 2^−freedom: few items show no rare outcomes.
        """
        across = int(np.count_nonzero(self.differences <= limit))
        share = (1 + across) / (1 + len(self.differences))
        if not across and self.smooth:
            distance, spread = float(self.differences.mean()) - limit, math.sqrt(self.variance)
            normal = float(ndtr(-distance / spread)) if spread else 0.0
            share = min(share, max(normal, 2.0**-self.freedom, sys.float_info.min))
        return float(stdtr(self.freedom, ndtri(share))) if share < 1 else 1.0

    def low(self, alpha: float) -> float:
        """The lower end of the two-sided interval at 1 − alpha."""
        draws = len(self.differences)
        tail = float(ndtr(stdtrit(self.freedom, alpha / 2)))
        beyond = math.ceil(tail * (1 + draws) - 1)  # the smallest number of resamples across that does not reject
        if beyond < 1:  # too few items for any p-value of that size
            return min(0.0, float(self.differences.min()))
        return float(np.partition(self.differences, beyond - 1)[beyond - 1])


def resample(pairs: Mapping[str, TaskPair], scores: Scores, objective: Objective, seed: int) -> Resampled:
    """The difference of the objective, first − second, over resampled items. Every task has to have `resamples`.

    Args:
        pairs: task -> outcomes, of every task of `scores`.
        scores: of one of the models: say the direction of every metric.
        seed: key of the draws.
    """
    firsts, seconds = {}, {}
    for task, pair in pairs.items():
        generator = np.random.Generator(np.random.Philox(derive(seed, "paired bootstrap", task)))
        firsts[task], seconds[task] = _task_values(pair, generator)
    with np.errstate(invalid="ignore"):  # two infinite perplexities have no difference, which `finite` reports
        differences = objective.values(scores, firsts) - objective.values(scores, seconds)
    return Resampled(
        differences=differences,
        freedom=sum(pair.items for pair in pairs.values()) - len(pairs),
        smooth=all(pair.kind != "median" for pair in pairs.values()),
    )


def _task_values(pair: TaskPair, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """The task's value for both models in every resample."""
    columns = [pair.first, pair.second, *(pair.weights or ())]
    kinds, counts = np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)
    if pair.kind != "median" and len(kinds) <= _FEW_KINDS:
        drawn = generator.multinomial(pair.items - 1, counts / pair.items, size=DRAWS).astype(np.float64)
        sums = drawn @ kinds
        totals = sums[:, 2:] if pair.weights else np.full((DRAWS, 2), pair.items - 1.0)
        return from_means(pair.kind, sums[:, 0] / totals[:, 0]), from_means(pair.kind, sums[:, 1] / totals[:, 1])
    firsts, seconds = np.empty(DRAWS), np.empty(DRAWS)
    step = max(1, _AT_ONCE // pair.items)
    for start in range(0, DRAWS, step):
        block = slice(start, min(start + step, DRAWS))
        drawn_items = generator.integers(0, pair.items, (block.stop - start, pair.items - 1))
        first_weights, second_weights = (
            (column[drawn_items] for column in pair.weights) if pair.weights else (None,) * 2
        )
        firsts[block] = aggregates(pair.kind, pair.first[drawn_items], first_weights)
        seconds[block] = aggregates(pair.kind, pair.second[drawn_items], second_weights)
    return firsts, seconds
