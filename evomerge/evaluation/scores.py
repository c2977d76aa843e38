"""Scores of a merge: outcomes by task and item."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """The outcome of one task.

    Attributes:
        metric: name of the metric as lm-eval prints it, without the filter.
        higher_is_better: direction of the metric, as the task declares it.
        items: item ids, in the order of the block that was scored.
        outcomes: the metric of each item, aligned with `items` (e.g. 0/1 for exact match, a log-likelihood for
            perplexity).
        value: the task's own aggregate over the outcomes.
        stderr: standard error of `value`, None where the aggregate has no closed form for it.
        aggregate: lm-eval's name of how the outcomes become `value`, "custom" where it is not known: what a
            comparison on resampled items recomputes the value with, see `evomerge.evaluation.aggregates`.
        weights: of the items (words or bytes), aligned with `items`; None where the aggregate has none.
        gold: log-probability of each item's right answer, aligned with `items`; None where the task has none to choose
            or to read. A smooth companion of coarse metrics; it is not kept with the outcomes, and not compared.
    """

    metric: str
    higher_is_better: bool
    items: tuple[int, ...]
    outcomes: tuple[float, ...]
    value: float
    stderr: float | None
    aggregate: str = "custom"
    weights: tuple[float, ...] | None = None
    gold: tuple[float, ...] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Scores:
    """Per-item outcomes by task, from which every aggregate, standard error and paired test is computed.

    Attributes:
        companion: the objective's, of stored scores: their `gold` is not kept. None where it can be computed.
    """

    tasks: Mapping[str, TaskScores]
    seconds: Mapping[str, float]
    tokens: int = 0
    companion: float | None = field(default=None, compare=False)
