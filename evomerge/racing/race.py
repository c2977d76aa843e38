"""A race: a candidate that is scored block by block is dropped when it is worse than the best complete one.

Both are compared on the same items, the only comparison of parts that means anything: means of different items differ
by how hard the items are. For the same reason a dropped candidate is told to the sampler by its *paired estimate*, the
incumbent's value on all items plus the paired difference on those that both have seen, and not by its partial mean.

The test is one-sided, and repeated after each block at a boundary that holds the error rate over all looks together
(`boundary`). Its statistic is the sum of the paired differences over the root of the sum of their squares:

- every item contributes slope · difference / items of its task seen so far, so that tasks are strata. Squares are not
  centred: if no task has a difference, that is their variance with no degrees of freedom lost, as in McNemar's test,
  and small blocks of many tasks cause no trouble. If there are differences of opposite sign, it is a little careful.
- one more square, as large as the largest, is added: without it, seven losses of seven would be an event of 2.6
  standard deviations, and small blocks would drop more good candidates than the error rate allows. For differences
  whose law is symmetric, P(sum > z · root) ≤ exp(−z² / 2) for any number of items (Efron, 1969), which is what makes
  such a statistic safe with few of them.
- where all differences are zero there is no evidence, and nothing is dropped. Where all are equal but not zero, the
  variance around their mean is zero, but this statistic is about √items and decides as a sign test would.

Everything here is a pure function of the outcomes, so that a search which is resumed decides as it did before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from evomerge.errors import InvalidInput
from evomerge.evaluation.aggregates import CUSTOM, MEANS, WEIGHTED, FloatArray, is_mean
from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.objective import Objective
from evomerge.racing.boundary import Spending, boundary

_UNSEEN: Final = 0.5  # items that a task of which none was seen counts for in the information


@dataclass(frozen=True)
class RaceSettings:
    """Error rate of a race, and the point from which it may be decided.

    Attributes:
        alpha: the largest share of equally good candidates that may be dropped, over all looks together.
        minimum: items that are scored before the first look.
        spending: function by which alpha is used up, see `evomerge.racing.boundary`.
    """

    alpha: float = 0.02
    minimum: int = 64
    spending: Spending = "pocock"

    def __post_init__(self) -> None:
        if self.minimum < 1:
            raise InvalidInput(f"a race needs at least one item before its first look, but minimum is {self.minimum}")
        boundary([1.0], self.alpha, self.spending)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Decision of an interim look of a race, with the test behind it.

    Attributes:
        drop: whether the candidate is worse, so that the rest of its items is not worth scoring.
        estimate: the paired estimate of its objective on all items; the sampler learns from it if it is dropped.
        difference: of the objective, candidate − incumbent, on the items seen.
        statistic: the difference in standard errors, negative where the candidate is behind.
        boundary: the candidate is dropped at a statistic of −boundary or less; infinite where no look was due.
        fraction: share of the information seen.
        items: seen so far.
    """

    drop: bool
    estimate: float
    difference: float
    statistic: float
    boundary: float
    fraction: float
    items: int


def decide(
    settings: RaceSettings,
    objective: Objective,
    incumbent: Scores,
    seen: Scores,
    earlier: Sequence[Mapping[str, int]] = (),
) -> Decision:
    """Compare a candidate with the incumbent on the items that it has been scored on, and decide whether to drop it.

    Objectives that are no weighted mean, and perplexities, are linearised at the incumbent (the delta method). Weighted
    means are exact.

    Args:
        incumbent: the best complete candidate, with all items of the search.
        seen: the candidate's scores on all blocks so far.
        earlier: task -> items that had been seen, after each earlier block of this race.

    Raises:
        InvalidInput: a metric whose parts cannot be compared, or items or metrics that the incumbent does not have.
    """
    slopes, sizes, counts = mean_slopes(objective, incumbent), _sizes(incumbent), _sizes(seen)
    difference, statistic = _test(_contributions(slopes, incumbent, seen))
    bound = _bound(settings, slopes, sizes, [*earlier, counts])
    return Decision(
        drop=statistic <= -bound,
        estimate=objective.value(incumbent) + difference,
        difference=difference,
        statistic=statistic,
        boundary=bound,
        fraction=_information(slopes, sizes, counts),
        items=sum(counts.values()),
    )


def information(objective: Objective, incumbent: Scores, counts: Mapping[str, int]) -> float:
    """Share of the information about the difference after `counts` items of each task, 1 after all.

    The variance of the difference at the end, over that now: Σ slope² / all items over Σ slope² / items seen, for
    outcomes that vary as much in every task. Where every task is seen to the same share, it is that share. A task that
    has not been seen counts as half an item: the difference has nothing of it yet, and little error may be spent.
    """
    return _information(mean_slopes(objective, incumbent), _sizes(incumbent), counts)


def require_means(references: Sequence[Scores]) -> None:
    """Refuse metrics of a whole corpus: nothing is known of them from a part of their items.

    A function of the task's own passes if it gives the mean of every reference, and the items of one at least differ:
    where all outcomes are equal, many a function looks like their mean.

    Args:
        references: complete scores of other candidates; a search asks once, with its sources', before it starts.

    Raises:
        InvalidInput: a task whose value is not (a function of) the mean of its items.
    """
    for task in references[0].tasks:
        found = [reference.tasks[task] for reference in references]
        for score in found:
            _sensitivity(task, score)
        if found[0].aggregate == CUSTOM and all(len(set(score.outcomes)) < 2 for score in found):
            raise InvalidInput(
                f"task {task!r} is scored by {found[0].metric!r} with a function of its own, and every source has the "
                "same outcome on all of its items, so that it cannot be seen whether it is their mean and candidates "
                "cannot race; write fidelity: full, or aggregate that metric by mean"
            )


def _sensitivity(task: str, score: TaskScores) -> float:
    """Derivative of a task's value by the (weighted) mean of its outcomes.

    Raises:
        InvalidInput: it depends on more.
    """
    if score.aggregate in MEANS or (score.aggregate == CUSTOM and is_mean(score.value, score.outcomes)):
        return 1.0
    slopes = {
        "perplexity": -score.value,  # exp(−mean)
        "weighted_perplexity": -score.value,
        "bits_per_byte": -1 / math.log(2),
    }
    if score.aggregate not in slopes or (score.aggregate in WEIGHTED and score.weights is None):
        raise InvalidInput(
            f"task {task!r} is scored by {score.metric!r} ({score.aggregate}), which is no mean over items, so that a "
            "part of the items says nothing about all of them and candidates cannot race; write fidelity: full, or use "
            "a metric that is averaged over items"
        )
    return slopes[score.aggregate]


def mean_slopes(objective: Objective, incumbent: Scores) -> dict[str, float]:
    """Derivative of the objective by the (weighted) mean of each task's outcomes, at the incumbent.

    Raises:
        InvalidInput: a metric whose parts cannot be compared.
    """
    slopes = objective.slopes(incumbent)
    return {task: slopes[task] * _sensitivity(task, score) for task, score in incumbent.tasks.items()}


def total_weight(score: TaskScores) -> float:
    """Divisor of the task's (weighted) mean: the sum of the weights, or the number of items."""
    weighted = score.aggregate in WEIGHTED and score.weights is not None
    return math.fsum(score.weights or ()) if weighted else float(len(score.items))


def _sizes(scores: Scores) -> dict[str, int]:
    return {task: len(score.items) for task, score in scores.tasks.items()}


def _information(slopes: Mapping[str, float], sizes: Mapping[str, int], counts: Mapping[str, int]) -> float:
    steepest = max(map(abs, slopes.values()), default=0.0)
    if steepest == 0 or not math.isfinite(steepest):  # nothing moves the objective: no candidate will be dropped
        return sum(counts.values()) / sum(sizes.values())
    squares = {task: (slope / steepest) ** 2 for task, slope in slopes.items()}
    at_end = math.fsum(square / max(_UNSEEN, sizes[task]) for task, square in squares.items())
    now = math.fsum(square / max(_UNSEEN, counts.get(task, 0)) for task, square in squares.items())
    return min(1.0, at_end / now)


def _contributions(slopes: Mapping[str, float], incumbent: Scores, seen: Scores) -> FloatArray:
    """Contribution of every item seen to the difference of the objective, as an array [items]."""
    parts = [np.zeros(0)]
    for task, score in seen.tasks.items():
        if task not in incumbent.tasks:
            raise InvalidInput(f"the incumbent has no scores of task {task!r}; only the same tasks can race")
        if score.items:
            parts.append(slopes[task] * _differences(task, score, incumbent.tasks[task]))
    return np.concatenate(parts)


def _differences(task: str, ours: TaskScores, theirs: TaskScores) -> FloatArray:
    """Candidate − incumbent of every item, as shares of the (weighted) mean over the items seen."""
    if (ours.metric, ours.higher_is_better) != (theirs.metric, theirs.higher_is_better):
        raise InvalidInput(f"task {task!r} was scored by {ours.metric!r} and by {theirs.metric!r}; score both again")
    paired = _paired(task, ours.items, theirs)
    with np.errstate(invalid="ignore"):  # of infinite outcomes, which decide nothing
        shares: FloatArray = (np.array(ours.outcomes) - np.array(paired)) / total_weight(ours)
    return shares


def _paired(task: str, items: tuple[int, ...], theirs: TaskScores) -> Sequence[float]:
    """The incumbent's outcomes on these items."""
    if theirs.items[: len(items)] == items:  # all candidates take the items in one order
        return theirs.outcomes[: len(items)]
    outcomes = dict(zip(theirs.items, theirs.outcomes, strict=True))
    try:
        return [outcomes[item] for item in items]
    except KeyError as missing:
        raise InvalidInput(
            f"the incumbent was not scored on item {missing} of task {task!r}; only the same items can race"
        ) from missing


def _test(contributions: FloatArray) -> tuple[float, float]:
    """The difference, and its statistic; both are NaN where outcomes are not finite."""
    if not np.isfinite(contributions).all():
        return math.nan, math.nan
    largest = float(np.abs(contributions).max(initial=0.0))
    if largest == 0:
        return 0.0, 0.0
    shares = contributions / largest
    total = math.fsum(shares.tolist())
    return total * largest, total / math.sqrt(1 + math.fsum((shares**2).tolist()))


def _bound(
    settings: RaceSettings, slopes: Mapping[str, float], sizes: Mapping[str, int], looks: Sequence[Mapping[str, int]]
) -> float:
    """The boundary at the last of these looks; infinite before the minimum, and after the last block."""
    items = sum(looks[-1].values())
    if items < settings.minimum or items >= sum(sizes.values()):
        return math.inf
    fractions = [_information(slopes, sizes, counts) for counts in looks if sum(counts.values()) >= settings.minimum]
    return boundary(fractions, settings.alpha, settings.spending)
