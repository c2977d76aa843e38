"""Counts of a search's finished trials, and the best of them.

Reading all trials for every question would cost more than the answer, from a few hundred trials on. They are counted
once when the study is opened; the study's only writer then adds each trial that it finishes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optuna.trial import FrozenTrial, TrialState

from evomerge.jobs import Cost
from evomerge.objective import Assessment
from evomerge.samplers.base import in_tell_order
from evomerge.storage import attributes
from evomerge.study.trials import is_counted, is_feasible, total_cost, value_of


class Tally:
    """Counts of the finished trials of one study.

    Attributes:
        finished: trials that count towards the budget: complete, pruned, or failed by their own fault.
        failed: of these, trials without a score.
        dropped: of these, trials that were not scored on all items.
        told: results that were told, which number the next one.
        scored: of these, results of trials that were scored; the others were refused without.
        spent: cost of all trials that count towards the budget.
        seconds: phase -> seconds of workers, over all trials.
        values: of the complete trials that meet all constraints, in the order in which they were told.
    """

    def __init__(self, finished: Sequence[FrozenTrial]) -> None:
        counted = [trial for trial in finished if is_counted(trial)]
        self.finished = len(counted)
        self.failed = sum(trial.state is TrialState.FAIL for trial in counted)
        self.dropped = sum(trial.state is TrialState.PRUNED for trial in counted)
        # A failed trial may have the number of an earlier attempt, whose end was never stored.
        results = in_tell_order(finished)
        self.told = sum(attributes.TELL in trial.user_attrs for trial in results)
        self.scored = 0
        self.spent = total_cost(counted)
        self.seconds: dict[str, float] = {}
        for trial in finished:
            self.add_seconds(trial.user_attrs.get(attributes.SECONDS, {}))
        self.values: list[float] = []
        self._best: tuple[bool, float, int] | None = None  # meets the constraints, value, less the number
        self._scored_at_best = 0
        for trial in results:
            value = value_of(trial)
            self.scored += attributes.TELL in trial.user_attrs and trial.state is not TrialState.FAIL
            if trial.state is TrialState.COMPLETE and value is not None:
                self._consider(value, trial.number, is_feasible(trial))

    @property
    def best(self) -> tuple[float, int] | None:
        """Value and number of the best trial: of those that meet all constraints, else of all, the one with the highest
        value, of equal ones the earliest. None before the first."""
        return None if self._best is None else (self._best[1], -self._best[2])

    @property
    def is_best_feasible(self) -> bool:
        """Whether the best trial meets all constraints."""
        return self._best is not None and self._best[0]

    @property
    def since_best(self) -> int:
        """Number of trials with a score since the best value was first reached."""
        return self.scored - self._scored_at_best

    def add_complete(self, number: int, assessment: Assessment, cost: Cost) -> None:
        """Count a trial that was scored on all items."""
        self._add_told(cost)
        self.scored += 1
        self._consider(assessment.value, number, assessment.is_feasible)

    def add_dropped(self, cost: Cost) -> None:
        """Count a trial that was scored on a part of the items."""
        self._add_told(cost)
        self.scored += 1
        self.dropped += 1

    def add_infeasible(self) -> None:
        """Count a trial that was refused without being scored, which the sampler has been told."""
        self._add_told(Cost())
        self.failed += 1

    def add_seconds(self, seconds: Mapping[str, float]) -> None:
        """Count the time of a trial, by phase."""
        for phase, spent in seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + round(spent, 4)  # as trials store them

    def add_failed(self, cost: Cost) -> None:
        """Count a trial that has no score."""
        self.finished += 1
        self.failed += 1
        self.spent += cost

    def _add_told(self, cost: Cost) -> None:
        self.told += 1
        self.finished += 1
        self.spent += cost

    def _consider(self, value: float, number: int, feasible: bool) -> None:
        if feasible:
            self.values.append(value)
        rank = (feasible, value, -number)
        if self._best is None or rank[:2] > self._best[:2]:
            self._scored_at_best = self.scored
        if self._best is None or rank > self._best:
            self._best = rank
