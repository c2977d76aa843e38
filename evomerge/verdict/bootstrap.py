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
from evomerge.verdict.verdict import CONFIDENCE

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
    """The objective of both models in every resample, in one part, or a minimum of tasks in one part per task.

    The smallest of some means is smaller in resamples than in the data, by more where tasks are tied: resampled minima
    favour the model whose worst task stands alone, however many items there are. So minima are compared by their parts.
    min a − min b is the smallest, over the first model's tasks i, of the largest a_i − b_j: it is above a limit where
    each a_i is shown to be above the limit beyond some b_j (intersection-union test: Berger 1982), each time at
    1 / parts of the level, as there are so many j to choose from (Bonferroni).

    Attributes:
        firsts, seconds: arrays [parts, draws].
        freedom: number of items − tasks.
        smooth: whether every part varies smoothly with every item, so that its tails are nearly normal; a median jumps
            from one outcome to the next.
    """

    firsts: FloatArray
    seconds: FloatArray
    freedom: int
    smooth: bool = True

    @property
    def parts(self) -> int:
        return len(self.firsts)

    @property
    def variance(self) -> float:
        """Variance of the difference of the objective."""
        return float((self.firsts.min(axis=0) - self.seconds.min(axis=0)).var(ddof=1))

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.firsts).all() and np.isfinite(self.seconds).all())

    @property
    def signal(self) -> float:
        """The difference in standard errors, of the two parts on which it depends whether the first model is better."""
        return min(float(_in_standard_errors(first - self.seconds, 0.0).max()) for first in self.firsts)

    def p(self) -> float:
        """Two-sided p-value that the difference is 0: the level at which the interval would just touch 0."""
        return min(1.0, 2 * min(self.at_most(0.0), self.exchanged().at_most(0.0)))

    def equivalence_p(self, margin: float) -> float:
        """p-value that the difference is the margin or more, in either direction: the level at which the interval would
        just touch the margin, of the nearer side."""
        return max(self.at_most(-margin), self.exchanged().at_most(-margin))

    def interval(self) -> tuple[float, float]:
        """The expanded percentile interval: the differences that the test does not reject. It excludes 0 exactly where
        the p-value is below 1 − `CONFIDENCE`."""
        return self.low(1 - CONFIDENCE), -self.exchanged().low(1 - CONFIDENCE)

    def exchanged(self) -> Resampled:
        """The difference second − first."""
        return replace(self, firsts=self.seconds, seconds=self.firsts)

    def at_most(self, limit: float) -> float:
        """One-sided p-value that the difference is `limit` or less."""
        smallest = max(float(self._below(first - self.seconds, limit).min()) for first in self.firsts)
        return min(1.0, self.parts * smallest)

    def low(self, alpha: float) -> float:
        """The lower end of the two-sided interval at 1 − alpha."""
        return min(float(self._ends(first - self.seconds, alpha / 2 / self.parts).max()) for first in self.firsts)

    def _below(self, differences: FloatArray, limit: float) -> FloatArray:
        """One-sided p-values that differences of parts, an array [parts, draws], are `limit` or less.

        The resamples there are counted with the observed one added, so that it is never 0. Without any, the normal
        distribution of the resamples continues beyond what so many draws can show: later looks test at levels below
        that. It does so as far as the signs of so many items allow, 2^−freedom: few items show no rare outcomes.
        """
        across = np.count_nonzero(differences <= limit, axis=1)
        shares: FloatArray = (1 + across) / (1 + differences.shape[1])
        if self.smooth:
            least = max(2.0**-self.freedom, sys.float_info.min)
            normal = np.maximum(ndtr(-_in_standard_errors(differences, limit)), least)
            shares = np.where(across == 0, np.minimum(shares, normal), shares)
        below: FloatArray = stdtr(self.freedom, ndtri(shares))
        return below

    def _ends(self, differences: FloatArray, level: float) -> FloatArray:
        """The smallest differences of parts that `_below` does not reject at that level."""
        draws = differences.shape[1]
        tail = float(ndtr(stdtrit(self.freedom, level)))
        beyond = math.ceil(tail * (1 + draws) - 1)  # the smallest number of resamples across that does not reject
        if beyond < 1:  # no number of resamples gives a p-value of that size
            ends: FloatArray = differences.min(axis=1)
            return np.where(self._below(differences, 0.0) < level, ends, np.minimum(ends, 0.0))
        found: FloatArray = np.partition(differences, beyond - 1, axis=1)[:, beyond - 1]
        return found


def _in_standard_errors(differences: FloatArray, limit: float) -> FloatArray:
    """The distance of differences, an array [parts, draws], from the limit; infinite where they do not vary."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: FloatArray = (differences.mean(axis=1) - limit) / differences.std(axis=1, ddof=1)
    return np.nan_to_num(found, nan=0.0, posinf=math.inf, neginf=-math.inf)


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
    of_parts = objective.sampled_points if objective.aggregate == "min" else objective.values
    return Resampled(
        firsts=np.atleast_2d(of_parts(scores, firsts)),
        seconds=np.atleast_2d(of_parts(scores, seconds)),
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
