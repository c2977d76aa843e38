"""Values of tasks from the outcomes of their items: lm-eval's aggregations, recomputed from stored outcomes.

The verdict needs the value of resampled items, so the functions here work on many samples at once. Not covered:
aggregations of a whole corpus, which the adapter refuses, and those that a task brings itself (`custom`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import InvalidInput

FloatArray = NDArray[np.float64]

CUSTOM: Final = "custom"  # a function of the task's own, of which nothing is known
MEANS: Final = frozenset({"mean", "brier_score"})  # the Brier score of each item is its outcome
WEIGHTED: Final = frozenset({"weighted_perplexity", "bits_per_byte"})
RECOMPUTED: Final = frozenset({*MEANS, *WEIGHTED, "perplexity", "median"})


def aggregate(kind: str, outcomes: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """The value of a task from the outcomes of its items, as lm-eval computes it.

    Args:
        kind: lm-eval's name of the aggregation, one of `RECOMPUTED`.
        outcomes: one number per item; log-likelihoods for the perplexities.
        weights: of the items (words or bytes), for the weighted kinds.

    Raises:
        InvalidInput: a kind that cannot be recomputed, or a weighted one without weights.
    """
    rows = np.asarray(outcomes, dtype=np.float64)[None]
    return float(aggregates(kind, rows, None if weights is None else np.asarray(weights, dtype=np.float64)[None])[0])


def aggregates(kind: str, outcomes: FloatArray, weights: FloatArray | None = None) -> FloatArray:
    """`aggregate` of many samples at once: arrays [samples, items] -> [samples]."""
    if kind == "median":
        middle = outcomes.shape[1] // 2
        chosen: FloatArray = np.partition(outcomes, middle, axis=1)[:, middle]  # lm-eval's: the upper of two
        return chosen
    if kind in WEIGHTED and weights is None:
        raise InvalidInput(f"aggregation {kind!r} needs the weight of every item (its words or bytes)")
    totals = float(outcomes.shape[1]) if weights is None else weights.sum(axis=1)
    return from_means(kind, outcomes.sum(axis=1) / totals)


def from_means(kind: str, means: FloatArray) -> FloatArray:
    """The value from the (weighted) mean of the outcomes, for all kinds that depend on nothing else.

    Raises:
        InvalidInput: a kind that cannot be recomputed, or not from a mean.
    """
    if kind in MEANS:
        return means
    if kind in ("perplexity", "weighted_perplexity"):
        with np.errstate(over="ignore"):
            perplexities: FloatArray = np.exp(-means)
            return perplexities
    if kind == "bits_per_byte":
        return -means / math.log(2)
    allowed = ", ".join(sorted(RECOMPUTED - {"median"}))
    raise InvalidInput(f"aggregation {kind!r} cannot be recomputed from a mean; those that can: {allowed}")


def is_mean(value: float, outcomes: Sequence[float] | FloatArray) -> bool:
    """Whether an aggregation of which nothing is known has given the mean of these outcomes."""
    mean = math.fsum(outcomes) / max(1, len(outcomes))
    return math.isclose(value, mean, rel_tol=1e-9, abs_tol=1e-12)


def standard_error(kind: str, outcomes: Sequence[float], weights: Sequence[float] | None, value: float) -> float | None:
    """Standard error of the aggregate: closed form for means, delta method for perplexities, otherwise None."""
    if len(outcomes) < 2:
        return None
    if kind in MEANS:
        return _mean_stderr(outcomes)
    if kind == "perplexity":
        return value * _mean_stderr(outcomes)
    if kind in WEIGHTED and weights is not None:
        of_ratio = _ratio_stderr(outcomes, weights)
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
