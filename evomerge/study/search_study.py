"""The search's study: its one writer. Everything that is needed to go on after a crash is in it, and nothing else is.

Each trial lives through ask (params), `begin` (attempt), artifact, and tell (attributes, tell order, state). Killed
anywhere between, it is RUNNING when the study is opened again, and is scored again under its own number. A database
stores an ask or a tell at once; a journal may hold a trial without all its params, which is failed as interrupted and
proposed anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from evomerge.errors import InvalidInput
from evomerge.evaluation.evaluator import Scores
from evomerge.jobs import Cost, Outcome, Scored
from evomerge.recipe import Recipe
from evomerge.samplers.base import sampler_of
from evomerge.samplers.reference_points import ReferencePoint, write_reference_points
from evomerge.spaces.bound import BoundSpace
from evomerge.storage import attributes
from evomerge.storage.attributes import write_document, write_text
from evomerge.storage.opening import at_once, with_retries
from evomerge.study.items import summary
from evomerge.study.trials import cost_to_json, finish_trial, is_feasible, read_cost, upload_items, value_of

MAX_ATTEMPTS = 3

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True)
class Proposal:
    """A trial that is to be scored."""

    number: int
    params: Mapping[str, Any]
    recipe: Recipe
    attempt: int


class SearchStudy:
    """Asks, begins, tells and fails trials of one Optuna study. Only its owner, the controller, writes to the study.

    Args:
        check_hold: raises when another controller has taken the study over.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: BaseStorage,
        space: BoundSpace,
        artifacts: Path,
        check_hold: Callable[[], None] = lambda: None,
    ) -> None:
        self.check_hold = check_hold
        self.study = study
        self._storage = storage
        self._space = space
        self._artifacts = artifacts
        # What follows from the trials is counted once here and kept up to date by the only writer, this object:
        # reading all trials for every question would cost more than the answer, from a few hundred trials on.
        finished = self.trials(*_FINISHED)
        counted = [trial for trial in finished if not trial.user_attrs.get(attributes.INTERRUPTED)]
        self._ids = {trial.number: trial._trial_id for trial in self.trials()}
        self._told = sum(attributes.TELL in trial.user_attrs for trial in finished)
        self._finished = len(counted)
        self._failed = sum(trial.state is TrialState.FAIL for trial in counted)
        self._dropped = sum(trial.state is TrialState.PRUNED for trial in counted)
        self._spent = sum((read_cost(trial) for trial in counted), Cost())
        self._best: tuple[bool, float, int] | None = None  # meets the constraints, value, less the number
        self._told_at_best = 0
        for trial in sorted(finished, key=lambda trial: trial.user_attrs.get(attributes.TELL, -1)):
            value = value_of(trial)
            if trial.state is TrialState.COMPLETE and value is not None:
                told = int(trial.user_attrs.get(attributes.TELL, -1)) + 1
                self._consider(value, trial.number, told, is_feasible(trial))

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials in these states, all without any. They are the storage's own: never change them."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    @property
    def finished(self) -> int:
        """Trials that count towards the budget: complete, pruned, or failed by their own fault."""
        return self._finished

    @property
    def failed(self) -> int:
        """Trials that count towards the budget and have no score."""
        return self._failed

    @property
    def dropped(self) -> int:
        """Trials that count towards the budget and were not scored on all items."""
        return self._dropped

    @property
    def spent(self) -> Cost:
        """What the trials that count towards the budget took together."""
        return self._spent

    @property
    def since_best(self) -> int:
        """How many trials were told since the best value was first reached."""
        return self._told - self._told_at_best

    @property
    def best(self) -> tuple[float, int] | None:
        """Value and number of the best trial: of those that meet all constraints, else of all, the one with the highest
        value, of equal ones the earliest. None before the first."""
        return None if self._best is None else (self._best[1], -self._best[2])

    def _consider(self, value: float, number: int, told: int, feasible: bool) -> None:
        rank = (feasible, value, -number)
        if self._best is None or rank[:2] > self._best[:2]:
            self._told_at_best = told
        if self._best is None or rank > self._best:
            self._best = rank

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

    def recover(self) -> list[Proposal]:
        """What a killed controller left RUNNING: proposals to score again, half-asked trials failed and proposed anew.

        A trial that was begun `MAX_ATTEMPTS` times and never finished is failed: it may be what kills us.
        """
        proposals = []
        for trial in self.trials(TrialState.RUNNING):
            attempt = int(trial.user_attrs.get(attributes.ATTEMPT, 0))
            if not self._space.is_complete(trial.params):
                self._enqueue_again(trial)
                self._finish(trial.number, TrialState.FAIL, partial(self._note_interruption, trial.number))
            elif attempt >= MAX_ATTEMPTS:
                self.fail(trial.number, f"not finished in {attempt} attempts: the controller died each time")
            else:
                recipe = self._space.decode(trial.params)
                proposals.append(Proposal(trial.number, dict(trial.params), recipe, attempt + 1))
        at_once(self._storage, lambda: self._enqueue_missing(self._space.centre))
        return proposals

    @property
    def is_best_feasible(self) -> bool:
        """Whether the best trial meets all constraints."""
        return self._best is not None and self._best[0]

    @property
    def ready(self) -> bool:
        """Whether another trial can be asked for now, or the sampler waits for results of its generation."""
        return sampler_of(self.study).ready(self.study)

    def ask(self) -> Proposal:
        """A new trial with all its params, children of a choice after their parent."""
        self.check_hold()
        trial, params = at_once(self._storage, self._ask)
        self._ids[trial.number] = trial._trial_id
        return Proposal(trial.number, params, self._space.decode(params), attempt=1)

    def _ask(self) -> tuple[optuna.Trial, dict[str, Any]]:
        trial = self.study.ask()
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
        return trial, params

    def begin(self, proposal: Proposal) -> None:
        """Note that a proposal is being submitted, so that one that kills us is not tried for ever."""
        with_retries(lambda: self._set(proposal.number, attributes.ATTEMPT, proposal.attempt))

    def give_back(self, proposal: Proposal) -> None:
        """Take the note back: a clean stop is no attempt."""
        with_retries(lambda: self._set(proposal.number, attributes.ATTEMPT, proposal.attempt - 1))

    def report(self, number: int, step: int, value: float, rungs: Mapping[int, float] | None = None) -> None:
        """An intermediate value of a trial, which Optuna Dashboard shows: the estimate after `step` items.

        Args:
            rungs: items -> value on them, where the trial has been compared with others so far.
        """

        def store() -> None:
            self.check_hold()
            self._storage.set_trial_intermediate_value(self._ids[number], step, value)
            if rungs:
                self._set(number, attributes.RUNGS, {str(items): value for items, value in rungs.items()})

        at_once(self._storage, store)

    def at_rungs(self) -> dict[int, dict[int, float]]:
        """Items -> trial -> its value on them, of all trials that have been compared with others."""
        found: dict[int, dict[int, float]] = {}
        for trial in self.trials():
            for items, value in trial.user_attrs.get(attributes.RUNGS, {}).items():
                found.setdefault(int(items), {})[trial.number] = value
        return found

    def tell(
        self,
        proposal: Proposal,
        outcome: Outcome,
        value: float,
        stderr: float | None,
        *,
        objectives: Sequence[float] | None = None,
        violations: Sequence[float] = (),
        companion: float | None = None,
        dropped: bool = False,
        incumbent: str | None = None,
    ) -> None:
        """Store a scored trial. Its artifact and attributes are there before it is finished, never after.

        Args:
            value: of the objective; of a trial that was dropped, the estimate that the sampler learns from.
            objectives: where there are several, all of them; `value` is then what trials are ranked by.
            violations: by how much each constraint is missed, 0 or less where it is met.
            companion: ranks it among trials of the same value; more is better.
            dropped: it was not scored on all items, and ends as PRUNED.
            incumbent: what the study shall keep of it for others to race against, see `evomerge.study.incumbent`.
        """
        assert isinstance(outcome.result, Scored)  # the controller sends failures to `fail`
        scores = outcome.result.scores
        self._upload(proposal.number, scores)

        def note() -> None:
            self._set(proposal.number, attributes.RECIPE, proposal.recipe.digest)
            document = {"objective_stderr": stderr, "tasks": summary(scores)}
            write_document(_TrialAttributes(self, proposal.number), attributes.SCORES, document)
            self._note(proposal.number, outcome)
            self._set(proposal.number, attributes.TELL, self._told)
            if objectives is not None:
                self._set(proposal.number, attributes.VALUE, value)
            if violations:
                self._set(proposal.number, attributes.VIOLATIONS, list(violations))
            if companion is not None and math.isfinite(companion):
                self._set(proposal.number, attributes.COMPANION, companion)
            if dropped:
                self._report_last(proposal.number, value)
            if incumbent is not None:
                write_text(self.study, attributes.INCUMBENT, incumbent)

        if dropped:
            self._finish(proposal.number, TrialState.PRUNED, note)
            self._dropped += 1
        else:
            told = value if objectives is None else list(objectives)
            self._finish(proposal.number, TrialState.COMPLETE, note, told)
        self._told += 1
        self._finished += 1
        self._spent += outcome.cost
        if not dropped:
            self._consider(value, proposal.number, self._told, max(violations, default=0.0) <= 0)

    def fail(self, number: int, reason: str, outcome: Outcome | None = None) -> None:
        """Store a trial that has no score, with the reason."""

        def note() -> None:
            self._set(number, attributes.FAILURE, reason[:1000])
            if outcome is not None:
                self._note(number, outcome)

        self._finish(number, TrialState.FAIL, note)
        if outcome is not None:
            self._spent += outcome.cost
        self._finished += 1
        self._failed += 1

    def set(self, key: str, value: Any) -> None:
        """A small attribute of the study."""
        self.check_hold()
        with_retries(lambda: self.study.set_user_attr(key, value))

    def set_text(self, key: str, text: str) -> None:
        """A text of any length as an attribute of the study."""
        self.check_hold()
        at_once(self._storage, lambda: write_text(self.study, key, text))

    def start(
        self, find: Callable[[], Sequence[Mapping[str, Any]]], aims: Callable[[], Sequence[ReferencePoint]] = list
    ) -> None:
        """Have the params that `find` finds proposed first, after the centre, and set the goals that `aims` finds.

        Done, and asked for, once per study.
        """
        if self.study.user_attrs.get(attributes.WARM):
            return
        points, goals = find(), aims()

        def store() -> None:
            self.check_hold()
            for point in (self._space.centre, *points):
                self._enqueue_missing(point)
            if goals:
                write_reference_points(self.study, goals)
            self.study.set_user_attr(attributes.WARM, True)

        at_once(self._storage, store)

    def _enqueue_missing(self, point: Mapping[str, Any]) -> None:
        """Enqueue a point that was not proposed yet, or whose proposal was interrupted."""
        for trial in self.trials():
            fixed = trial.system_attrs.get("fixed_params") if trial.state is TrialState.WAITING else trial.params
            if fixed == point:
                return
        self.study.enqueue_trial(dict(point))

    def _enqueue_again(self, trial: FrozenTrial) -> None:
        """A point that was enqueued and whose proposal was interrupted."""
        fixed = trial.system_attrs.get("fixed_params")
        if fixed is not None:
            at_once(self._storage, lambda: self._enqueue_missing(fixed))

    def _note_interruption(self, number: int) -> None:
        self._set(number, attributes.INTERRUPTED, True)
        self._set(number, attributes.FAILURE, "interrupted in ask")

    def _note(self, number: int, outcome: Outcome) -> None:
        seconds = {phase: round(value, 4) for phase, value in outcome.seconds.items()}
        self._set(number, attributes.WORKER, {"name": outcome.worker, "attempt": outcome.attempt})
        self._set(number, attributes.SECONDS, seconds)
        self._set(number, attributes.COST, cost_to_json(outcome.cost))

    def _upload(self, number: int, scores: Scores) -> None:
        upload_items(self._artifacts, self._storage, _reference(number, self._ids[number]), scores)

    def _finish(
        self, number: int, state: TrialState, note: Callable[[], None], value: float | list[float] | None = None
    ) -> None:
        finish_trial(self.study, self._storage, number, state, note, value)

    def _report_last(self, number: int, value: float) -> None:
        # Optuna takes the last one for the value of a pruned trial. An earlier attempt may have got farther than this.
        reported = self._storage.get_trial(self._ids[number]).intermediate_values
        self._storage.set_trial_intermediate_value(self._ids[number], max(reported, default=0), value)

    def _set(self, number: int, key: str, value: Any) -> None:
        self.check_hold()
        self._storage.set_trial_user_attr(self._ids[number], key, value)


@dataclass(frozen=True)
class _TrialAttributes:
    """A trial of the search as something that attributes can be written to."""

    search: SearchStudy
    number: int

    def set_user_attr(self, key: str, value: Any) -> None:
        self.search._set(self.number, key, value)


def _reference(number: int, trial_id: int) -> FrozenTrial:
    """A trial to say which one is meant. Reading it would cost a query for each of its parts."""
    return FrozenTrial(number, TrialState.RUNNING, None, None, None, {}, {}, {}, {}, {}, trial_id)
