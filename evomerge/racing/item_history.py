"""Outcomes of earlier candidates item by item, and the prediction that they make of the next one.

Merges of the same sources mostly agree on an item, so that its mean over earlier candidates says much about the next
candidate. The mean is shrunken towards that of the task as if `PRIOR` further candidates had had any of the task's
outcomes: an item on which one or two candidates agreed is not certain yet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from evomerge.evaluation.aggregates import FloatArray
from evomerge.evaluation.scores import Scores

PRIOR: Final = 0.2  # candidates that the task's outcomes count for in the prediction of an item


class ItemHistory:
    """Number, sum and sum of squares of the outcomes of every item. Outcomes that are not finite are left out.

    Args:
        earlier: scores of candidates, on all items or on some of them, in the order in which they ended. The order
            decides the last bits of the sums.
    """

    def __init__(self, earlier: Iterable[Scores] = ()) -> None:
        self._moments: dict[str, dict[int, tuple[int, float, float]]] = {}
        for scores in earlier:
            self.add(scores)

    def add(self, scores: Scores) -> None:
        """Add the outcomes of a candidate that has ended."""
        for task, score in scores.tasks.items():
            moments = self._moments.setdefault(task, {})
            for item, outcome in zip(score.items, score.outcomes, strict=True):
                if math.isfinite(outcome):
                    count, total, squares = moments.get(item, (0, 0.0, 0.0))
                    moments[item] = (count + 1, total + outcome, squares + outcome**2)

    def predict(self, task: str, items: Sequence[int]) -> tuple[FloatArray, FloatArray]:
        """Expected outcomes of items of a task and their variances, two arrays [items].

        For right and wrong answers the variance is f (1 − f). Both are zero for a task without any outcome.
        """
        known = self._moments.get(task, {})
        moments = np.array([known.get(item, (0, 0.0, 0.0)) for item in items], dtype=np.float64).reshape(-1, 3)
        counts, of_task = moments[:, 0], moments.sum(axis=0)
        _, mean, square = of_task / max(1.0, of_task[0])
        expected = (moments[:, 1] + PRIOR * mean) / (counts + PRIOR)
        second = (moments[:, 2] + PRIOR * square) / (counts + PRIOR)
        return expected, np.maximum(0.0, second - expected**2)
