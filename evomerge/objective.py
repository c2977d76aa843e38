"""The objective: scores of several tasks -> the one number that the search maximises, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from evomerge.errors import InvalidInput, unknown_name
from evomerge.evaluation.aggregates import FloatArray
from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.forms import finite_or_none
from evomerge.spec import ObjectiveSpec


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """The objective of a candidate that was scored on all items. Every number in it but the companion is finite.

    Attributes:
        value: the number that candidates are ranked by.
        stderr: its standard error, None where a task has none.
        objectives: one number per task where each task is an objective of its own, else None.
        violations: by how much each constraint is missed, 0 or less where it is met.
        companion: ranks candidates of the same value; more is better.
    """

    value: float
    stderr: float | None
    objectives: tuple[float, ...] | None = None
    violations: tuple[float, ...] = ()
    companion: float | None = None

    @property
    def is_feasible(self) -> bool:
        """Whether all constraints are met."""
        return max(self.violations, default=0.0) <= 0


@dataclass(frozen=True)
class Dropped:
    """The objective of a candidate that was scored on a part of the items only.

    Attributes:
        estimate: of the objective on all items; the sampler learns from it.
        stderr: standard error of the objective on the items that were scored.
    """

    estimate: float
    stderr: float | None


@dataclass(frozen=True)
class Collapsed:
    """Scores of which the objective is no finite number, with the reason: the candidate fails."""

    reason: str


_Computed = TypeVar("_Computed")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Aggregates task scores. Every task counts, and more is better, also where the metric is minimised.

    Attributes:
        aggregate: weighted_mean, min or geometric_mean.
        weights: task -> weight, for every task of the evaluator.
        scales: task -> (the sources' worst, their best score), where scores are normalised; else None.
        several: each task is an objective of its own (pareto); `value` is then the one that candidates are ranked by.
        floors: (task, the worst allowed score) of each constraint.
    """

    aggregate: str
    weights: Mapping[str, float]
    scales: Mapping[str, tuple[float, float]] | None = None
    several: bool = False
    floors: tuple[tuple[str, float], ...] = ()

    def assess(self, scores: Scores) -> Assessment | Collapsed:
        """Compute the numbers that a study stores of a candidate; the reason where one of them is not finite."""
        if (without := collapsed(scores)) is not None:
            return without
        assessed = _computed(
            lambda: Assessment(
                value=self.value(scores),
                stderr=self.stderr(scores),
                objectives=tuple(self.points(scores)) if self.several else None,
                violations=tuple(self.violations(scores)),
                companion=self.companion(scores),
            )
        )
        if isinstance(assessed, Collapsed):
            return assessed
        numbers = (assessed.value, *assessed.violations, *(assessed.objectives or ()))
        return assessed if all(map(math.isfinite, numbers)) else Collapsed(f"the objective is {assessed.value}")

    def assess_dropped(self, scores: Scores, estimate: float) -> Dropped | Collapsed:
        """The same of a candidate that was dropped, with the estimate of its objective on all items."""
        if (without := collapsed(scores)) is not None:
            return without
        assessed = _computed(lambda: Dropped(estimate, self.stderr(scores)))
        if isinstance(assessed, Dropped) and not math.isfinite(estimate):
            return Collapsed(f"the objective is {estimate}")
        return assessed

    def value_or_nan(self, scores: Scores) -> float:
        """`value`; NaN where the scores of a collapsed merge allow none. It may be infinite."""
        value = _computed(lambda: self.value(scores))
        return math.nan if isinstance(value, Collapsed) else value

    def value(self, scores: Scores) -> float:
        """The objective of one candidate. With normalisation 0 is the sources' worst on every task and 1 their best.

        A geometric mean in which some task is zero or below is 0.
        """
        points = {task: self._point(task, score) for task, score in scores.tasks.items()}
        total = math.fsum(self.weights[task] for task in points)
        if self.aggregate == "min":
            return min(points.values())
        if self.aggregate == "weighted_mean":
            return math.fsum(self.weights[task] * point for task, point in points.items()) / total
        if min(points.values()) <= 0:
            return 0.0
        return math.exp(math.fsum(self.weights[task] * math.log(point) for task, point in points.items()) / total)

    def companion(self, scores: Scores) -> float | None:
        """Weighted mean over tasks of the mean log-probability of the right answers, which ranks candidates of the
        same value. Tasks without one do not count; of stored scores the number that was stored, None without any."""
        means = {task: math.fsum(score.gold) / len(score.gold) for task, score in scores.tasks.items() if score.gold}
        total = math.fsum(self.weights[task] for task in means)
        if not total:
            return scores.companion
        return math.fsum(self.weights[task] * mean for task, mean in means.items()) / total

    def points(self, scores: Scores) -> list[float]:
        """One number per task, in the tasks' order, all to be maximised."""
        return [self._point(task, score) for task, score in scores.tasks.items()]

    def violations(self, scores: Scores) -> list[float]:
        """By how much each constraint is missed, in the units of the score; 0 or less where it is met."""
        signs = {task: 1.0 if score.higher_is_better else -1.0 for task, score in scores.tasks.items()}
        return [signs[task] * (floor - scores.tasks[task].value) for task, floor in self.floors]

    def values(self, scores: Scores, values: Mapping[str, FloatArray]) -> FloatArray:
        """`value` of many samples at once, such as resampled items.

        Args:
            scores: give the tasks and the direction of their metrics.
            values: task -> the task's value in each sample, an array [samples].
        """
        points = self.sampled_points(scores, values)
        if self.aggregate == "min":
            worst: FloatArray = points.min(axis=0)
            return worst
        weights = np.array([self.weights[task] for task in scores.tasks])
        weights /= weights.sum()
        if self.aggregate == "weighted_mean":
            mean: FloatArray = weights @ points
            return mean
        positive = points.min(axis=0) > 0
        logarithms = np.log(points, out=np.zeros_like(points), where=positive)
        return np.where(positive, np.exp(weights @ logarithms), 0.0)

    def sampled_points(self, scores: Scores, values: Mapping[str, FloatArray]) -> FloatArray:
        """`points` of many samples at once, with the arguments of `values`: an array [tasks, samples]."""
        return np.stack(
            [self._points(task, score.higher_is_better, values[task]) for task, score in scores.tasks.items()]
        )

    def gains(self, scores: Scores) -> dict[str, float] | None:
        """Gain of the objective per unit of each task's value, negative for metrics that are minimised.

        None where it is not the same everywhere: the objective is no weighted mean.
        """
        if self.aggregate != "weighted_mean":
            return None
        total = math.fsum(self.weights[task] for task in scores.tasks)
        return {task: self.weights[task] / total * self._gain(task, score) for task, score in scores.tasks.items()}

    def slopes(self, scores: Scores) -> dict[str, float]:
        """Derivative of `value` by each task's value at these scores, negative for metrics that are minimised.

        `gains` where the objective is a weighted mean. Of a minimum, only the worst task counts.
        """
        by_point = self._slopes(scores)
        return {task: by_point[task] * self._gain(task, score) for task, score in scores.tasks.items()}

    def stderr(self, scores: Scores) -> float | None:
        """Standard error of `value` by the delta method, tasks independent; None where it is not finite."""
        errors = {task: self._scaled_error(task, score) for task, score in scores.tasks.items()}
        if any(error is None for error in errors.values()):
            return None
        slopes = self._slopes(scores)
        error = math.hypot(*(slopes[task] * (error or 0.0) for task, error in errors.items()))
        return finite_or_none(error)

    def _slopes(self, scores: Scores) -> dict[str, float]:
        """Derivative of the objective by each task's point."""
        points = {task: self._point(task, score) for task, score in scores.tasks.items()}
        total = math.fsum(self.weights[task] for task in points)
        if self.aggregate == "min":
            worst = min(points, key=lambda task: points[task])
            return {task: float(task == worst) for task in points}
        if self.aggregate == "weighted_mean":
            return {task: self.weights[task] / total for task in points}
        value = self.value(scores)
        return {
            task: value * self.weights[task] / total / point if point > 0 else 0.0 for task, point in points.items()
        }

    def _gain(self, task: str, score: TaskScores) -> float:
        if self.scales is None:
            return 1.0 if score.higher_is_better else -1.0
        worst, best = self.scales[task]
        return 1 / (best - worst)

    def _point(self, task: str, score: TaskScores) -> float:
        if self.scales is None:
            return score.value if score.higher_is_better else -score.value
        worst, best = self.scales[task]
        return (score.value - worst) / (best - worst)

    def _points(self, task: str, higher_is_better: bool, values: FloatArray) -> FloatArray:
        if self.scales is None:
            return values if higher_is_better else -values
        worst, best = self.scales[task]
        return (values - worst) / (best - worst)

    def _scaled_error(self, task: str, score: TaskScores) -> float | None:
        if score.stderr is None or self.scales is None:
            return score.stderr
        worst, best = self.scales[task]
        return score.stderr / abs(best - worst)


def collapsed(scores: Scores) -> Collapsed | None:
    """The tasks whose score is not finite, as a reason; None where all are finite."""
    broken = {task: score.value for task, score in scores.tasks.items() if not math.isfinite(score.value)}
    return Collapsed(", ".join(f"task {task!r} scores {value}" for task, value in broken.items())) if broken else None


def _computed(compute: Callable[[], _Computed]) -> _Computed | Collapsed:
    try:
        return compute()
    except (ArithmeticError, ValueError) as error:  # scores of a collapsed merge overflow, or are infinite
        return Collapsed(f"the objective cannot be computed: {error}")


def build_objective(spec: ObjectiveSpec, pack_weights: Mapping[str, float], sources: Sequence[Scores]) -> Objective:
    """The objective of a spec.

    Args:
        pack_weights: task -> weight of the evaluator's pack; `spec.weights` overrides them.
        sources: scores of base and experts on the search items, in that order.

    Raises:
        InvalidInput: a weight for a task that the evaluator does not have, a geometric mean over a metric that is
            minimised, or a task on which all sources score the same, so that there is no scale to normalise to.
    """
    weights = task_weights(spec, pack_weights)
    several, floors = spec.aggregate == "pareto", _floors(spec, sources)
    if spec.normalise == "sources":
        return Objective(
            aggregate=spec.ranking, weights=weights, scales=_scales(sources), several=several, floors=floors
        )
    low = [task for task, score in sources[0].tasks.items() if not score.higher_is_better]
    if spec.ranking == "geometric_mean" and low:
        raise InvalidInput(
            f"a geometric mean needs scores of which more is better, but that of task {low[0]!r} shall be low; "
            "write objective: {normalise: sources}, or use weighted_mean"
        )
    return Objective(aggregate=spec.ranking, weights=weights, several=several, floors=floors)


def task_weights(spec: ObjectiveSpec, pack_weights: Mapping[str, float]) -> dict[str, float]:
    """Task -> weight; the spec's where it gives one, else the pack's.

    Raises:
        InvalidInput: a weight for a task that the evaluator does not have.
    """
    for task in spec.weights:
        if task not in pack_weights:
            raise unknown_name("task in objective.weights", task, pack_weights)
    for constraint in spec.constraints:
        if constraint.task != "all" and constraint.task not in pack_weights:
            raise unknown_name("task in objective.constraints", constraint.task, ["all", *pack_weights])
    return {**pack_weights, **spec.weights}


def _floors(spec: ObjectiveSpec, sources: Sequence[Scores]) -> tuple[tuple[str, float], ...]:
    """(task, the worst allowed score) of each constraint; base first among the sources."""
    floors = []
    for constraint in spec.constraints:
        for task in sources[0].tasks if constraint.task == "all" else (constraint.task,):
            higher = sources[0].tasks[task].higher_is_better
            values = [source.tasks[task].value for source in sources]
            if constraint.at_least == "base":
                limit = values[0]
            elif constraint.at_least == "best-source":
                limit = max(values) if higher else min(values)
            else:
                limit = constraint.at_least
            floors.append((task, limit - constraint.tolerance if higher else limit + constraint.tolerance))
    return tuple(floors)


def _scales(sources: Sequence[Scores]) -> dict[str, tuple[float, float]]:
    scales = {}
    for task, score in sources[0].tasks.items():
        values = [source.tasks[task].value for source in sources]
        if min(values) == max(values):
            raise InvalidInput(
                f"all sources score {values[0]:g} on task {task!r}, so it cannot be normalised to them; "
                "use objective.normalise: none or leave the task out"
            )
        ends = (min(values), max(values))
        scales[task] = ends if score.higher_is_better else ends[::-1]
    return scales
