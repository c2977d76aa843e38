"""The search's study and its one writer. It contains all that is needed to resume after a crash, and nothing else.

Each trial lives through ask (params, first attempt), the file of its items, and tell (attributes, tell order, state).
Killed anywhere between, it is RUNNING when the study is opened again, and is scored again under its own number.
Each ask and each tell is stored at once. An ask for which server or other writers leave no time is stored in steps; a
run that ends in one leaves a trial without all its params, which is failed as interrupted and proposed anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from evomerge.errors import InvalidInput
from evomerge.jobs import Cost, Outcome, Scored
from evomerge.objective import Assessment, Dropped
from evomerge.recipe import Recipe
from evomerge.requests.asked_point import misfit
from evomerge.samplers.base import sampler_of
from evomerge.samplers.reference_points import ReferencePoint, write_reference_points
from evomerge.spaces.bound import BoundSpace, Infeasible
from evomerge.storage import attributes
from evomerge.storage.attributes import write_text
from evomerge.storage.patience import IMPATIENT, StoragePatience
from evomerge.study.beginning import Beginning, write_beginning
from evomerge.study.tally import Tally
from evomerge.study.trial_writer import TrialWriter
from evomerge.study.trials import FINISHED, is_counted
from evomerge.trial_note import trial_note

MAX_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A trial that is to be scored, or that is refused for the reason given."""

    number: int
    params: Mapping[str, Any]
    recipe: Recipe
    attempt: int
    infeasible: Infeasible | None = None


class SearchStudy:
    """Asks, begins, tells and fails trials of one Optuna study. Only its owner, the controller, writes to the study.

    Args:
        artifacts: folder of the outcomes of items.
        check_hold: raises when another controller has taken the study over.
        patience: with which the folder of artifacts is waited for; the storage has its own.

    Attributes:
        tally: counts of the finished trials, kept up to date here.
        latest_failure: number and reason of the trial that this process has failed last.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: BaseStorage,
        space: BoundSpace,
        *,
        artifacts: Path,
        check_hold: Callable[[], None] = lambda: None,
        patience: StoragePatience = IMPATIENT,
    ) -> None:
        self.check_hold = check_hold
        self.study = study
        self._space = space
        self._writer = TrialWriter(study, storage, artifacts=artifacts, check_hold=check_hold, patience=patience)
        self.tally = Tally(self.trials(*FINISHED))
        self.latest_failure: tuple[int, str] | None = None

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials in these states, all without any. They are the storage's own: never change them."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def take_ended(self) -> list[FrozenTrial]:
        """Copies of the trials that have ended since the last call and count towards the budget, in that order."""
        return [deepcopy(trial) for trial in self._writer.take_ended() if is_counted(trial)]

    def recipe_of(self, trial: FrozenTrial) -> Recipe:
        """The recipe of a trial, rebuilt from its params.

        Raises:
            InvalidInput: it is not the recipe that was scored.
        """
        recipe = self._space.decode(trial.params)
        scored = trial.user_attrs.get(attributes.RECIPE)
        if scored is not None and scored != recipe.digest:
            raise InvalidInput(
                f"trial {trial.number} was scored with recipe {scored[:12]}, its params now give {recipe.digest[:12]}: "
                "the sources, the space or the release of evomerge are not those of the study"
            )
        return recipe

    def recover(self, *, isolated: bool = False) -> list[Proposal]:
        """Resume the trials that a killed controller left RUNNING: complete proposals are returned, to be scored again;
        half-asked ones are failed and proposed anew.

        Args:
            isolated: candidates cannot kill the controller, and the attempt that its death cut short is made again.
                Otherwise a trial that was begun `MAX_ATTEMPTS` times and never finished is failed: it may be the one
                that kills us.
        """
        proposals = []
        for trial in self.trials(TrialState.RUNNING):
            attempt = int(trial.user_attrs.get(attributes.ATTEMPT, 0))
            if not self._space.is_complete(trial.params):
                self._enqueue_again(trial)
                self._writer.finish(trial.number, TrialState.FAIL, partial(self._set_interruption, trial.number))
                continue
            attempt = max(1, attempt) if isolated else attempt + 1
            proposal = self._proposal(trial.number, dict(trial.params), attempt)
            if attempt > MAX_ATTEMPTS and proposal.infeasible is None:
                self.fail(trial.number, f"not finished in {attempt - 1} attempts: the controller died each time")
            else:
                proposals.append(proposal)
        self._writer.transaction(lambda: self._enqueue(self._space.initial))
        return proposals

    @property
    def ready(self) -> bool:
        """Whether another trial can be asked for now, or the sampler waits for results of its generation."""
        return sampler_of(self.study).ready(self.study)

    def ask(self) -> Proposal:
        """A new trial with all its params, children of a choice after their parent."""
        while True:
            self.check_hold()
            trial = self._writer.add(self._fill)
            reason = self._misfit(trial)
            if reason is None:
                return self._proposal(trial.number, dict(trial.params), 1)
            self._writer.finish(trial.number, TrialState.FAIL, partial(self._set_interruption, trial.number, reason))

    def find_added(self) -> None:
        """Take up the trials that others have enqueued since the last time."""
        self._writer.find_added()

    def _misfit(self, trial: FrozenTrial) -> str | None:
        """The reason why an enqueued trial, which anybody may have enqueued, cannot be scored."""
        return misfit(self._space, trial.system_attrs.get("fixed_params", {}))

    def _proposal(self, number: int, params: Mapping[str, Any], attempt: int) -> Proposal:
        recipe = self._space.decode(params)
        infeasible = self._space.infeasible(recipe)
        return Proposal(number=number, params=params, recipe=recipe, attempt=attempt, infeasible=infeasible)

    def _fill(self, trial: optuna.Trial) -> None:
        if self._misfit(self._writer.stored(trial.number)) is not None:
            return  # it is failed by `ask`
        # Of an enqueued point nothing is drawn, and genetic samplers would not take it into their generation.
        trial.relative_params  # noqa: B018
        params: dict[str, Any] = {}
        for name, distribution in self._space.distributions.items():
            if name not in self._space.active(params):
                continue
            if isinstance(distribution, CategoricalDistribution):
                params[name] = trial.suggest_categorical(name, distribution.choices)
            elif isinstance(distribution, FloatDistribution):
                params[name] = trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
            else:
                raise TypeError(f"param {name!r} has a {type(distribution).__name__}, which no space makes")
        self._set_attempt(trial.number, 1)

    def begin(self, proposal: Proposal) -> None:
        """Note that a proposal is being submitted, so that one that kills us is not tried for ever.

        A new one was stored with its first attempt.
        """
        self.check_hold()
        if self._writer.stored(proposal.number).user_attrs.get(attributes.ATTEMPT) != proposal.attempt:
            self._set_attempt(proposal.number, proposal.attempt)

    def undo_attempt(self, proposal: Proposal) -> None:
        """Take the note of `begin` back: a clean stop is no attempt."""
        self._set_attempt(proposal.number, proposal.attempt - 1)

    def report(self, number: int, step: int, value: float, rungs: Mapping[int, float] | None = None) -> None:
        """An intermediate value of a trial, which Optuna Dashboard shows: the estimate after `step` items.

        Args:
            rungs: items -> value on them, where the trial has been compared with others so far.
        """

        def store() -> None:
            self._writer.report(number, step, value)
            if rungs:
                self._writer.set(number, attributes.RUNGS, {str(items): value for items, value in rungs.items()})

        self._writer.transaction(store)

    def at_rungs(self) -> dict[int, dict[int, float]]:
        """Items -> trial -> its value on them, of all trials that have been compared with others."""
        found: dict[int, dict[int, float]] = {}
        for trial in self.trials():
            for items, value in trial.user_attrs.get(attributes.RUNGS, {}).items():
                found.setdefault(int(items), {})[trial.number] = value
        return found

    def tell(
        self, proposal: Proposal, outcome: Outcome, assessed: Assessment | Dropped, incumbent: str | None = None
    ) -> None:
        """Store a scored trial. Its artifact and attributes are there before it is finished, never after.

        Args:
            assessed: the objective of its scores; a dropped trial ends as PRUNED.
            incumbent: text of a new incumbent, which others race against, see `evomerge.study.incumbent`.
        """
        assert isinstance(outcome.result, Scored)  # the controller sends failures to `fail`
        number, scores = proposal.number, outcome.result.scores
        note = trial_note(proposal.recipe, scores, outcome.cost)
        artifact = self._writer.upload(scores)

        def write() -> None:
            self._writer.attach(number, artifact)
            self._writer.set_result(number, proposal.recipe, scores, assessed.stderr)
            self._set_outcome(number, outcome)
            self._writer.set_note(number, note)
            self._writer.set(number, attributes.TELL, self.tally.told)
            if isinstance(assessed, Dropped):
                self._writer.report_last(number, assessed.estimate)
            else:
                self._set_assessment(number, assessed)
            if incumbent is not None:
                write_text(self.study, attributes.INCUMBENT, incumbent)

        if isinstance(assessed, Dropped):
            self._writer.finish(number, TrialState.PRUNED, write)
            self.tally.add_dropped(outcome.cost)
        else:
            told = assessed.value if assessed.objectives is None else list(assessed.objectives)
            self._writer.finish(number, TrialState.COMPLETE, write, told)
            self.tally.add_complete(number, assessed, outcome.cost)
        self.tally.add_seconds(outcome.seconds)
        self._writer.discard_checkpoints(outcome)

    def fail(self, number: int, reason: str, outcome: Outcome | None = None) -> None:
        """Store a trial that has no score, with the reason."""

        def write() -> None:
            self._set_failure(number, reason)
            if outcome is not None:
                self._set_outcome(number, outcome)

        self._writer.finish(number, TrialState.FAIL, write)
        self.tally.add_failed(Cost() if outcome is None else outcome.cost)
        self.tally.add_seconds({} if outcome is None else outcome.seconds)
        self.latest_failure = (number, reason)
        if outcome is not None:
            self._writer.discard_checkpoints(outcome)

    def cancel(self, number: int, reason: str, outcome: Outcome | None = None) -> bool:
        """Fail a trial that is running or waits to be proposed; False where it has ended or never was.

        Args:
            outcome: what has been scored of it so far.
        """
        trial = next(
            (each for each in self.trials(TrialState.RUNNING, TrialState.WAITING) if each.number == number), None
        )
        if trial is None:
            return False
        if trial.state is TrialState.WAITING:  # no state but this can follow, and none but it can be told
            self._writer.start(number)
        self.fail(number, reason, outcome)
        return True

    def refuse(self, proposal: Proposal, infeasible: Infeasible) -> None:
        """Store a proposal that is out of bounds as a failed trial, which the sampler learns as a bad one."""

        def write() -> None:
            self._writer.set(proposal.number, attributes.FAILURE, infeasible.reason)
            self._writer.set(proposal.number, attributes.INFEASIBLE, infeasible.excess)
            self._writer.set(proposal.number, attributes.TELL, self.tally.told)

        self._writer.finish(proposal.number, TrialState.FAIL, write)
        self.tally.add_infeasible()

    def set(self, key: str, value: Any) -> None:
        """A small attribute of the study."""
        self.check_hold()
        self.study.set_user_attr(key, value)

    def set_text(self, key: str, text: str) -> None:
        """A text of any length as an attribute of the study."""
        self.check_hold()
        self._writer.transaction(lambda: write_text(self.study, key, text))

    def start(
        self,
        find: Callable[[], Sequence[Mapping[str, Any]]],
        aims: Callable[[], Sequence[ReferencePoint]] = list,
        begin: Callable[[], Beginning | None] = lambda: None,
    ) -> None:
        """Have the params that `find` finds proposed first, after the initial ones of the space, and set the goals that
        `aims` finds. Where `begin` finds a merge to begin at, that comes before all others.

        Done, and asked for, once per study.
        """
        if self.study.user_attrs.get(attributes.WARM):
            return
        points, goals, beginning = find(), aims(), begin()

        def store() -> None:
            self.check_hold()
            if beginning is not None:
                self._enqueue([beginning.params])
                write_beginning(self.study, beginning)
            self._enqueue([*self._space.initial, *points])
            if goals:
                write_reference_points(self.study, goals)
            self.study.set_user_attr(attributes.WARM, True)

        self._writer.transaction(store)

    def _enqueue(self, points: Iterable[Mapping[str, Any]]) -> None:
        for point in points:
            self._enqueue_missing(point)

    def _enqueue_missing(self, point: Mapping[str, Any]) -> None:
        """Enqueue a point that was not proposed yet, or whose proposal was interrupted."""
        if not any(_point_of(trial) == point for trial in self.trials()):
            self.study.enqueue_trial(dict(point))

    def _enqueue_again(self, trial: FrozenTrial) -> None:
        """A point that was enqueued and whose proposal was interrupted."""
        fixed = trial.system_attrs.get("fixed_params")
        if fixed is not None:
            self._writer.transaction(lambda: self._enqueue_missing(fixed))

    def _set_attempt(self, number: int, attempt: int) -> None:
        self._writer.set(number, attributes.ATTEMPT, attempt)

    def _set_interruption(self, number: int, reason: str = "interrupted in ask") -> None:
        self._writer.set(number, attributes.INTERRUPTED, True)
        self._set_failure(number, reason)

    def _set_failure(self, number: int, reason: str) -> None:
        self._writer.set(number, attributes.FAILURE, reason[:1000])
        if self._space.is_complete(self._writer.stored(number).params):
            return
        if any(trial.number > number and trial.params for trial in self.trials()):
            self._writer.set(number, attributes.OVERTAKEN, True)  # their ordinals are decided, see `SeededSampler`

    def _set_outcome(self, number: int, outcome: Outcome) -> None:
        worker: dict[str, Any] = {"name": outcome.worker, "attempt": outcome.attempt}
        if outcome.losses:
            worker["losses"] = outcome.losses
        self._writer.set(number, attributes.WORKER, worker)
        self._writer.set_effort(number, outcome.seconds, outcome.cost)

    def _set_assessment(self, number: int, assessment: Assessment) -> None:
        if assessment.objectives is not None:
            self._writer.set(number, attributes.VALUE, assessment.value)
        if assessment.violations:
            self._writer.set(number, attributes.VIOLATIONS, list(assessment.violations))
        self._writer.set_companion(number, assessment.companion)


def _point_of(trial: FrozenTrial) -> Mapping[str, Any]:
    """The params of a trial; of one that waits, or was cancelled while it did, those that it was enqueued with."""
    ended_untouched = trial.state is TrialState.FAIL and not trial.params and is_counted(trial)
    if trial.state is TrialState.WAITING or ended_untouched:
        return trial.system_attrs.get("fixed_params") or {}
    return trial.params
