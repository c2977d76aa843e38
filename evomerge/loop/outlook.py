"""The outlook of a search: the chance that what is left of its budget still passes the best baseline.

The model: the values of the latest candidates follow a straight line in the order in which they were told, which
carries on, and scatter around it independently. The upper tail of that scatter is exponential, of a scale that is known
from its largest quarter only, so that a further one exceeds it by the Pareto (Lomax) distribution that a Bayesian with
the prior 1 / scale predicts. The chances of the candidates to come are added up (Boole's inequality).

Each part errs on the side of going on: searches slow down, so that a line promises too much, and the sum is an upper
bound. As the question is asked again after every candidate, the largest of the last three answers counts. The model
does not know of a search that suddenly becomes faster. `benchmarks/futility.py` measures how many searches that would
have passed are given up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

_FEWEST: Final = 20  # candidates of a prediction
_STEADY: Final = 3  # predictions in a row, of which the largest counts
_TAIL: Final = 4  # one of so many is in the tail
_MOST: Final = 500  # candidates that a prediction looks at: its cost does not grow with the search
_FLAT: Final = 1e-9  # scatter below which all values are equal


@dataclass(frozen=True)
class Bar:
    """The best baseline that was scored before the search, with its value on the search items."""

    label: str
    value: float


def chance_to_pass(values: Sequence[float], bar: float, remaining: int) -> float | None:
    """The chance that one of the `remaining` candidates has a value above `bar`; 1 where one of `values` has.

    Args:
        values: of the candidates so far, in the order in which they were told.

    Returns:
        The largest of the last three predictions; None while there are too few candidates.
    """
    count = len(values)
    if count and max(values) > bar:
        return 1.0
    if remaining <= 0:
        return 0.0
    if count < _FEWEST + _STEADY - 1:
        return None
    return max(predicted_chance(values, bar, remaining + ago, ago=ago) for ago in range(_STEADY))


def predicted_chance(values: Sequence[float], bar: float, remaining: int, *, ago: int = 0) -> float:
    """The chance that one of the `remaining` candidates has a value above `bar`, by the model.

    Args:
        values: of the candidates so far, 20 or more, in the order in which they were told; the later half is looked at,
            but not more than 500.
        ago: so many candidates ago, of which nothing is known then.
    """
    count = len(values) - ago
    used = min(max(_FEWEST, (count + 1) // 2), _MOST)
    latest, order = np.array(values[count - used : count]), np.arange(used) - (used - 1) / 2
    spread = float(order @ order)
    slope = float(order @ latest) / spread
    scatter = latest - latest.mean() - slope * order
    error = math.sqrt(float(scatter @ scatter) / (used - 2))
    ahead = (used - 1) / 2 + np.arange(1, remaining + 1)
    missing = bar - latest.mean() - slope * ahead
    if error < _FLAT:
        return float((missing < 0).any())
    widths = error * np.sqrt(1 + 1 / used + ahead**2 / spread)  # of a prediction, the line being uncertain itself
    tail = used // _TAIL
    *_, threshold = largest = np.sort(scatter / error)[::-1][: tail + 1]
    scale = float(np.mean(largest[:-1]) - threshold)
    beyond = np.maximum(missing / widths - threshold, 0.0)
    chances = (tail + 1) / (used + 1) * (1 + beyond / (tail * max(scale, _FLAT))) ** -tail
    return min(1.0, float(np.where(beyond > 0, chances, 1.0).sum()))
