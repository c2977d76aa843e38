"""The merge that a trial grew from, read from its params."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from evomerge.recipe_spaces.mixture import label_of_param
from evomerge.spaces.space import SearchSpace


def nearest_corner(space: SearchSpace, params: Mapping[str, Any], made: Collection[str]) -> str | None:
    """The label of the nearest corner: the merge with the largest mean weight, or the one that the space is around.

    Args:
        made: labels of the merges that the space is made of, the best first, which decides between equal weights.
    """
    weights: dict[str, list[float]] = defaultdict(list)
    if space.around is None:
        for name, weight in params.items():
            weights[label_of_param(name)].append(weight)
    means = {label: math.fsum(weights[label]) / max(1, len(weights[label])) for label in made}
    return max(means, key=lambda label: means[label], default=None)
