"""Builds baselines: runs their plans side by side on the same workers, and stores each step as it ends."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from evomerge.baselines.baseline_plans import (
    BaselinePlan,
    Choice,
    Ingredients,
    MeasurementResult,
    ProductsRequest,
    ProductsResult,
    Step,
    StepResult,
    plan_of,
)
from evomerge.baselines.freshness import build_key
from evomerge.baselines.models_by_task import joined_row, named_recipes
from evomerge.baselines.named_recipes import (
    NamedRecipe,
    NamedResult,
    job_key,
    new_result,
    new_row,
    record_row,
    stored_row,
)
from evomerge.cluster import Executor
from evomerge.errors import EvomergeError
from evomerge.jobs import (
    Cost,
    Failed,
    Job,
    Measured,
    Multiplied,
    Multiply,
    Outcome,
    Progress,
    Score,
    Scored,
    Train,
    Trained,
)
from evomerge.loop.dispatcher import Dispatcher, reason_of
from evomerge.loop.stop import Stop
from evomerge.messages import some
from evomerge.object_store.artifact_folder import ArtifactFolder
from evomerge.objective import Collapsed
from evomerge.opening.measurements import PlannedMeasurement
from evomerge.packs.items import ItemBlock
from evomerge.recipe import Recipe, RecipeSet
from evomerge.spec import BaselineSpec
from evomerge.study.row_failures import read_failures
from evomerge.study.rows import Records, TrainingResult

POINTS = 100  # of a loss curve, about: every one is a write to the study

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class _Baseline:
    """A baseline that is being built.

    Attributes:
        results: of the steps that the plan waits for, or of scoring its choice: each model of it.
        waiting: places in `results` by the key of the job that will fill them.
        scored: every row that was scored on the way.
        trial: number of the row that was begun, for one that is trained.
        cost: of its steps so far. Scoring the choice is no part of it: every row costs that.
        choice: of the plan; None before it has chosen.
        is_scored: whether `results` are those of scoring the choice.
        reason: of the latest step that failed; of the one that the machine failed, where it did.
        by_machine: whether the machine failed a step, and not the merge.
    """

    spec: BaselineSpec
    made: str
    plan: BaselinePlan
    results: list[StepResult | None] = field(default_factory=list)
    waiting: dict[str, int] = field(default_factory=dict)
    scored: list[NamedResult] = field(default_factory=list)
    trial: int | None = None
    cost: Cost = field(default_factory=Cost)
    choice: Choice | None = None
    is_scored: bool = False
    reason: str = ""
    by_machine: bool = False

    def next_steps(self) -> Sequence[Step]:
        """The steps that the plan asks for next; after its choice, the steps that score the choice.

        Raises:
            EvomergeError: the plan has found nothing to choose.
        """
        if self.choice is None:
            try:
                # A generator is started by sending None; it then takes the results of what it yielded.
                return self.plan.send(self.results if self.results else None)  # type: ignore[arg-type]
            except StopIteration as end:
                self.choice = end.value
        assert self.choice is not None  # plans return one
        self.is_scored = True
        return named_recipes(self.spec.name, self.choice.recipe)

    @property
    def stores_steps(self) -> bool:
        """Whether each step is stored as a row of its own: one that is the whole choice is the baseline's row."""
        return self.choice is None or isinstance(self.choice.recipe, RecipeSet)

    def fail(self, reason: str, *, by_machine: bool = False) -> None:
        """Note why a step failed."""
        if not self.by_machine:
            self.reason, self.by_machine = reason, by_machine

    def take(self, place: int, result: StepResult | None) -> None:
        """Note the result of a step."""
        self.results[place] = result
        if isinstance(result, NamedResult):
            self.scored.append(result)
        if result is not None and not self.is_scored:
            self.cost += result.cost


class BaselineRunner:
    """Builds the baselines that a study does not have yet, and stores them. After a kill the next run resumes.

    Args:
        records: the sibling study of the baselines.
        artifacts: of the study, with the files of recipes and the checkpoints of trainings.
        on_progress: receives the progress of trainings.
    """

    def __init__(
        self,
        ingredients: Ingredients,
        records: Records,
        executor: Executor,
        *,
        stop: Stop,
        batch_size: int | None,
        artifacts: ArtifactFolder,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self._ingredients = ingredients
        self._records = records
        self._batch_size = batch_size
        self._on_progress = on_progress
        self._dispatcher = Dispatcher(executor, stop, on_progress=self._follow)
        self._artifacts = artifacts
        self._owners: dict[str, _Baseline] = {}
        self._left_out: dict[str, str] = {}

    def make(self, baselines: Sequence[BaselineSpec], *, again: bool = False) -> dict[str, str]:
        """Build the baselines that are not stored. One that cannot be built is skipped, with the reason in its row.

        It is kept out from then on where that is its own fault; where the machine failed, the next run tries it again.

        Args:
            again: try also those that could not be built before by their own fault.

        Returns:
            Baseline -> reason why it was skipped.

        Raises:
            InvalidInput: a setting that a baseline does not have.
            Interrupted: a signal asked for a stop.
        """
        failed = {} if again else read_failures(self._records.study, by_machine=False)
        for spec in baselines:
            made = build_key(spec, self._ingredients.spec, self._ingredients.standing)
            if (spec.name, made) in failed:
                self._left_out[spec.name] = failed[spec.name, made]
                continue
            baseline = _Baseline(spec=spec, made=made, plan=plan_of(spec, self._ingredients))
            record = self._records.find_made(spec.name, made)
            if record is not None and self._has_files(record.stored_recipe):
                if self._records.scores(record) is not None:
                    continue
                # Only the outcomes of its items are lost.
                baseline.choice = Choice(record.stored_recipe, record.cost, record.losses)
            self._advance(baseline)
        while self._dispatcher.jobs:
            done = self._dispatcher.wait()
            if done is not None:
                self._finish(*done)
        for name, reason in self._left_out.items():
            _log.warning("baseline %s is left out: %s", name, reason)
        return self._left_out

    def _has_files(self, recipe: Recipe | RecipeSet) -> bool:
        recipes = recipe.recipes.values() if isinstance(recipe, RecipeSet) else [recipe]
        return self._artifacts.has_files(digest for each in recipes for digest in each.files.values())

    def _advance(self, baseline: _Baseline) -> None:
        """Advance the plan until it waits for a worker, or has chosen and its choice was scored."""
        while not baseline.waiting:
            if baseline.by_machine:  # made without that step it would be a worse one, for ever
                self._leave_out(baseline, baseline.reason)
                return
            if baseline.is_scored and baseline.choice is not None:
                results = [each for each in baseline.results if isinstance(each, NamedResult)]
                if len(results) == len(baseline.results):
                    self._store(baseline, baseline.choice, results)
                else:
                    self._leave_out(baseline, baseline.reason)
                return
            try:
                steps = baseline.next_steps()
            except EvomergeError as error:
                self._leave_out(baseline, f"{error}{f': {baseline.reason}' if baseline.reason else ''}")
                return
            baseline.results = [None] * len(steps)
            for place, step in enumerate(steps):
                baseline.take(place, self._submit(baseline, place, step))

    def _leave_out(self, baseline: _Baseline, reason: str) -> None:
        self._left_out[baseline.spec.name] = reason
        self._records.fail(baseline.spec.name, baseline.made, reason, baseline.trial, by_machine=baseline.by_machine)

    def _submit(self, baseline: _Baseline, place: int, step: Step) -> StepResult | None:
        """The stored result of a step; None if there is none, and a job for it was submitted."""
        name = baseline.spec.name
        if isinstance(step, NamedRecipe):
            known = self._known(baseline, step)
            if known is not None:
                return known
            key = job_key(step, self._records)
            job: Job = Score(key=key, recipe=step.recipe, items=ItemBlock("search"), batch_size=self._batch_size)
        elif isinstance(step, PlannedMeasurement):
            job = step.job(f"{self._records.study.study_name}/{name}")
            key = job.key
        elif isinstance(step, ProductsRequest):
            key = f"{self._records.study.study_name}/{name}/products"
            job = Multiply(key)
        else:
            baseline.trial = self._records.begin(name, baseline.made)
            kept = self._records.kept(baseline.trial)
            if kept is not None:
                return kept
            key = f"{self._records.study.study_name}/{name}/training"
            job = Train(
                key=key,
                recipe=step.recipe,
                settings=step.settings,
                calibration=step.calibration,
                trainer=step.trainer,
            )
        baseline.waiting[key] = place
        self._owners[key] = baseline
        self._dispatcher.submit(job)
        return None

    def _known(self, baseline: _Baseline, row: NamedRecipe) -> NamedResult | None:
        """The scores of a row, from the study, or from the step of the same plan that its recipe was chosen in."""
        for result in baseline.scored:
            if result.row.recipe.digest == row.recipe.digest:
                return replace(result, row=row)
        return stored_row(row, self._records)

    def _finish(self, job: Job, outcome: Outcome) -> None:
        baseline = self._owners.pop(job.key)
        place = baseline.waiting.pop(job.key)
        result = self._result(baseline, job, outcome)
        if result is None:
            _log.warning("a step of baseline %s failed: %s", baseline.spec.name, baseline.reason)
        baseline.take(place, result)
        self._advance(baseline)

    def _result(self, baseline: _Baseline, job: Job, outcome: Outcome) -> StepResult | None:
        """Store and return the result of a step; None if it failed, with the reason in `baseline.reason`."""
        found, objective = outcome.result, self._ingredients.objective
        if isinstance(found, Scored) and isinstance(job, Score):
            assessed = objective.assess(found.scores)
            if isinstance(assessed, Collapsed):
                baseline.fail(f"the merge has collapsed: {assessed.reason}")
                self._records.discard_checkpoints(outcome)
                return None
            row = NamedRecipe(label=job.key.removeprefix(f"{self._records.study.study_name}/"), recipe=job.recipe)
            result = new_result(row, found.scores, outcome)
            if baseline.stores_steps:
                record_row(result, self._records, objective)
            return result
        if isinstance(found, Trained) and baseline.trial is not None:
            ends = {name: end for name, both in found.losses.items() for end in both if not math.isfinite(end)}
            if ends:
                baseline.fail(f"the training has diverged: the loss of {some(ends)} is not finite")
                self._records.discard_checkpoints(outcome)
                return None
            kept = TrainingResult(found.recipe, outcome.cost, found.losses)
            self._records.keep(baseline.trial, kept)
            self._records.discard_checkpoints(outcome)
            return kept
        if isinstance(found, Measured):
            return MeasurementResult(found.digest, outcome.cost)
        if isinstance(found, Multiplied):
            return ProductsResult(found.products, outcome.cost)
        baseline.fail(reason_of(outcome), by_machine=isinstance(found, Failed) and found.by_machine)
        return None

    def _store(self, baseline: _Baseline, choice: Choice, results: Sequence[NamedResult]) -> None:
        objective = self._ingredients.objective
        made = replace(
            joined_row(baseline.spec.name, choice.recipe, results, objective)
            if isinstance(choice.recipe, RecipeSet)
            else new_row(results[0], objective),
            cost=choice.cost + baseline.cost,
            made=baseline.made,
            losses=choice.losses,
        )
        self._records.add(made, baseline.trial)
        for each in results:
            if each.outcome is not None:
                self._records.discard_checkpoints(each.outcome)

    def _follow(self, progress: Progress) -> None:
        """Store a point of the loss curve: the mean over the sources."""
        self._on_progress(progress)
        baseline = self._owners.get(progress.key)
        if baseline is None or baseline.trial is None or progress.unit != "step":
            return
        if progress.step % max(1, progress.steps // POINTS) == 0 or progress.step == progress.steps:
            names = [ref.name for ref in self._ingredients.experts if ref.name in progress.losses]
            loss = sum(progress.losses[name] for name in names) / max(1, len(names))
            self._records.report(baseline.trial, progress.step, loss)
