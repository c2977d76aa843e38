"""The draw of a candidate: its items in a random order of their own, those that are in doubt sooner.

Poisson sampling: item i has a uniform number u, keyed by the candidate, and a weight; it has been drawn when
u ≤ threshold · weight. The probability of that, π = min(1, threshold · weight), is known exactly at every threshold, is
never zero, and grows to 1: at the end all items have been drawn. Weights are proportional to the standard deviation
that an item is predicted to have, which minimises the variance of the estimate (Neyman, 1934), but for a least weight:
what is predicted to be certain is drawn, too, so that an error of the prediction is found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evomerge.evaluation.aggregates import FloatArray
from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.objective import Objective
from evomerge.packs.items import ItemBlock
from evomerge.racing.item_history import ItemHistory
from evomerge.racing.race import mean_slopes, total_weight
from evomerge.seeding import derive

LEAST_WEIGHT: Final = 0.2  # of an item, as a share of the largest


@dataclass(frozen=True, kw_only=True, eq=False)
class Draw:
    """Blocks of items of one candidate, and all that is known of the items before it is scored.

    Arrays have the shape [items], tasks one after another.

    Attributes:
        items: task -> its item ids.
        incumbent_value: the incumbent's objective on all items.
        shares: derivative of the objective by the outcome of each item, at the incumbent.
        incumbent: its outcomes.
        predicted, variances: of the candidate's outcomes.
        weights: in proportion to which items are drawn.
        thresholds: of each block, increasing; infinite for the last.
        blocks: the items that come with each threshold; none is empty.
    """

    items: Mapping[str, tuple[int, ...]]
    incumbent_value: float
    shares: FloatArray
    incumbent: FloatArray
    predicted: FloatArray
    variances: FloatArray
    weights: FloatArray
    thresholds: tuple[float, ...]
    blocks: tuple[ItemBlock, ...]

    def probabilities(self, block: int) -> FloatArray:
        """Probability of each item to have been drawn by the end of a block, in (0, 1]."""
        return np.minimum(1.0, self.thresholds[block] * self.weights)

    @cached_property
    def information(self) -> tuple[tuple[float, float], ...]:
        """After each block, the expected share of the items, and the predicted variance of the estimate."""
        chances = [self.probabilities(block) for block in range(len(self.blocks))]
        squares = self.shares**2 * self.variances
        return tuple((float(each.mean()), float(np.sum(squares * (1 - each) / each))) for each in chances)

    def outcomes(self, seen: Scores) -> tuple[NDArray[np.bool_], FloatArray]:
        """Mask of the items that have been scored, and their outcomes; zero where there is none."""
        mask, found = [], []
        for task, ids in self.items.items():
            score = seen.tasks.get(task)
            of_item = {} if score is None else dict(zip(score.items, score.outcomes, strict=True))
            mask.append(np.array([item in of_item for item in ids], dtype=np.bool_))
            found.append(np.array([of_item.get(item, 0.0) for item in ids], dtype=np.float64))
        return np.concatenate(mask), np.concatenate(found)


def make_draw(
    objective: Objective,
    incumbent: Scores,
    history: ItemHistory,
    *,
    seed: int,
    trial: int,
    minimum: int,
    block: int,
) -> Draw:
    """Draw the items of a trial.

    Args:
        incumbent: the best complete candidate, with all items of the search.
        history: outcomes of the candidates that ended before the trial began.
        minimum: expected number of items of the first block.
        block: expected number of items of the others.
    """
    slopes = mean_slopes(objective, incumbent)
    shares = np.concatenate([slopes[task] * _of_mean(score) for task, score in incumbent.tasks.items()])
    forecasts = [history.predict(task, score.items) for task, score in incumbent.tasks.items()]
    predicted, variances = (np.concatenate(arrays) for arrays in zip(*forecasts, strict=True))
    weights = _weights(np.abs(shares) * np.sqrt(variances))
    items = {task: score.items for task, score in incumbent.tasks.items()}
    draws = np.random.Generator(np.random.Philox(derive(seed, "race", trial))).random(len(weights))
    thresholds, blocks = _blocks(items, draws, weights, minimum, block)
    return Draw(
        items=items,
        incumbent_value=objective.value(incumbent),
        shares=shares,
        incumbent=np.concatenate([score.outcomes for score in incumbent.tasks.values()]),
        predicted=predicted,
        variances=variances,
        weights=weights,
        thresholds=thresholds,
        blocks=blocks,
    )


def _of_mean(score: TaskScores) -> FloatArray:
    """Derivative of the task's (weighted) mean by the outcome of each item.

    An outcome of a weighted metric is of the whole item, such as the log-likelihood of all its words: it counts once,
    and not once per word.
    """
    return np.ones(len(score.items)) / total_weight(score)


def _weights(sizes: FloatArray) -> FloatArray:
    largest = float(sizes.max(initial=0.0))
    if largest == 0 or not math.isfinite(largest):
        return np.ones_like(sizes)
    return np.maximum(sizes / largest, LEAST_WEIGHT)


def _blocks(
    items: Mapping[str, tuple[int, ...]], draws: FloatArray, weights: FloatArray, minimum: int, block: int
) -> tuple[tuple[float, ...], tuple[ItemBlock, ...]]:
    """Thresholds with the items that each adds; a threshold that adds none is left out."""
    names = [(task, item) for task, ids in items.items() for item in ids]
    arrivals = draws / weights
    thresholds: list[float] = []
    blocks: list[ItemBlock] = []
    before = -math.inf
    for threshold in [*(_threshold(weights, size) for size in range(minimum, len(names), block)), math.inf]:
        added = np.flatnonzero((arrivals > before) & (arrivals <= threshold))
        if not len(added):
            continue
        chosen: dict[str, list[int]] = {}
        for place in added:
            task, item = names[place]
            chosen.setdefault(task, []).append(item)
        blocks.append(ItemBlock("search", chosen=tuple((task, tuple(ids)) for task, ids in chosen.items())))
        thresholds.append(threshold)
        before = threshold
    return tuple(thresholds), tuple(blocks)


def _threshold(weights: FloatArray, size: int) -> float:
    """The t of Σ min(1, t · weight) = size, for a size below the number of items."""
    falling = np.sort(weights)[::-1]
    rest = np.cumsum(falling[::-1])[::-1]
    candidates = (size - np.arange(len(falling))) / rest  # where so many of the largest are certain
    return float(candidates[np.argmax(candidates * falling <= 1)])
