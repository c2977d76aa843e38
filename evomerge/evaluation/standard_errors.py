"""Standard errors of the aggregates that lm-eval's tasks use, where they have a closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

WEIGHTED_AGGREGATES = frozenset({"weighted_perplexity", "bits_per_byte"})


def standard_error(kind: str, raw: Sequence[Any], numbers: Sequence[float], value: float) -> float | None:
    """Standard error of the aggregate: closed form for means, delta method for perplexities, otherwise None."""
    if len(numbers) < 2:
        return None
    if kind in ("mean", "brier_score"):
        return _mean_stderr(numbers)
    if kind == "perplexity":
        return value * _mean_stderr(numbers)
    if kind in WEIGHTED_AGGREGATES:
        of_ratio = _ratio_stderr(numbers, [float(weight) for _, weight in raw])
        return of_ratio / math.log(2) if kind == "bits_per_byte" else value * of_ratio
    return None


def _mean_stderr(numbers: Sequence[float]) -> float:
    count = len(numbers)
    mean = math.fsum(numbers) / count
    return math.sqrt(math.fsum((number - mean) ** 2 for number in numbers) / (count - 1) / count)


def _ratio_stderr(numbers: Sequence[float], weights: Sequence[float]) -> float:
    """Of sum(numbers) / sum(weights), linearised around it (Cochran, Sampling Techniques, 1977, eq. 6.13)."""
    count, total = len(numbers), math.fsum(weights)
    ratio = math.fsum(numbers) / total
    residuals = math.fsum((number - ratio * weight) ** 2 for number, weight in zip(numbers, weights, strict=True))
    return math.sqrt(residuals * count / (count - 1)) / total
