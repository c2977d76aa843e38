"""Making baselines: their plans side by side on the same workers, each step stored as it ends."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from evomerge.baselines.merges import Choice, Ingredients, Plan, Training, plan_of
from evomerge.baselines.rows import Row, RowResult, job_key, new_row, record_row, stored_row
from evomerge.cluster import Executor
from evomerge.controller import Dispatcher, Stop
from evomerge.errors import EvomergeError
from evomerge.evaluation.evaluator import ItemBlock
from evomerge.spec import TRAINED, BaselineSpec
from evomerge.study.records import Kept, Records
from evomerge.worker import Cost, Failed, Job, Outcome, Progress, Score, Scored, Train, Trained

POINTS = 100  # of a loss curve, about: every one is a write to the study

_log = logging.getLogger(__name__)


@dataclass
class _Baseline:
    """A baseline that is being made.

    Attributes:
        results: of the steps that the plan waits for, or of scoring its choice.
        waiting: places in `results` by the key of the job that will fill them.
        scored: every row that was scored on the way.
        trial: number of the row that was begun, for one that is trained.
        cost: of its steps so far. Scoring the choice is no part of it: every row costs that.
        choice: what the plan has chosen, once it has.
    """

    spec: BaselineSpec
    made: str
    plan: Plan
    results: list[RowResult | Kept | None] = field(default_factory=list)
    waiting: dict[str, int] = field(default_factory=dict)
    scored: list[RowResult] = field(default_factory=list)
    trial: int | None = None
    cost: Cost = field(default_factory=Cost)
    choice: Choice | None = None

    def take(self, place: int, result: RowResult | Kept | None) -> None:
        """Note the result of a step."""
        self.results[place] = result
        if isinstance(result, RowResult):
            self.scored.append(result)
        if result is not None and self.choice is None:
            self.cost += result.cost


class BaselineMaker:
    """Makes the baselines that a study does not have yet, and stores them. Killed anywhere, the next run goes on.

    Args:
        records: the sibling study of the baselines.
        on_progress: is told how far trainings are.
    """

    def __init__(
        self,
        ingredients: Ingredients,
        records: Records,
        executor: Executor,
        stop: Stop,
        batch_size: int | None,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self._ingredients = ingredients
        self._records = records
        self._batch_size = batch_size
        self._on_progress = on_progress
        self._dispatcher = Dispatcher(executor, stop, on_progress=self._follow)
        self._owners: dict[str, _Baseline] = {}

    def make(self, baselines: Sequence[BaselineSpec]) -> None:
        """Make what is not there. A baseline that cannot be made is left out, with a warning.

        Raises:
            InvalidInput: a setting that a baseline does not have.
            Interrupted: a signal asked for a stop.
        """
        for spec in baselines:
            made = made_key(spec, self._ingredients)
            record = self._records.find_made(spec.name, made)
            if record is None or self._records.scores(record) is None:
                self._go_on(_Baseline(spec, made, plan_of(spec, self._ingredients)))
        while self._dispatcher.jobs:
            done = self._dispatcher.wait()
            if done is not None:
                self._finish(*done)

    def _go_on(self, baseline: _Baseline) -> None:
        """Let the plan go on until it waits for a worker or has chosen, and then let its choice be scored."""
        while not baseline.waiting:
            if baseline.choice is not None:
                (result,) = baseline.results
                if isinstance(result, RowResult):
                    self._store(baseline, baseline.choice, result)
                return
            try:
                # A generator is started by sending None; it then takes the results of what it yielded.
                steps = baseline.plan.send(baseline.results if baseline.results else None)  # type: ignore[arg-type]
            except StopIteration as end:
                baseline.choice = end.value
                steps = [Row(baseline.spec.name, end.value.recipe)]
            except EvomergeError as error:
                _log.warning("baseline %s cannot be made and is left out: %s", baseline.spec.name, error)
                return
            baseline.results = [None] * len(steps)
            for place, step in enumerate(steps):
                baseline.take(place, self._submit(baseline, place, step))

    def _submit(self, baseline: _Baseline, place: int, step: Row | Training) -> RowResult | Kept | None:
        """What is stored of a step; otherwise None, and a job for it is on its way."""
        name = baseline.spec.name
        if isinstance(step, Row):
            known = self._known(baseline, step)
            if known is not None:
                return known
            key = job_key(step, self._records)
            job: Job = Score(key, step.recipe, ItemBlock("search"), batch_size=self._batch_size)
        else:
            baseline.trial = self._records.begin(name, baseline.made)
            kept = self._records.kept(baseline.trial)
            if kept is not None:
                return kept
            key = f"{self._records.study.study_name}/{name}/training"
            job = Train(key, step.recipe, step.settings, step.calibration)
        baseline.waiting[key] = place
        self._owners[key] = baseline
        self._dispatcher.submit(job)
        return None

    def _known(self, baseline: _Baseline, row: Row) -> RowResult | None:
        """The scores of a row, from the study, or from the step of the same plan that its recipe was chosen in."""
        for result in baseline.scored:
            if result.row.recipe.digest == row.recipe.digest:
                return replace(result, row=row)
        return stored_row(row, self._records)

    def _finish(self, job: Job, outcome: Outcome) -> None:
        baseline = self._owners.pop(job.key)
        place = baseline.waiting.pop(job.key)
        result: RowResult | Kept | None = None
        if isinstance(outcome.result, Scored) and isinstance(job, Score):
            row = Row(job.key.removeprefix(f"{self._records.study.study_name}/"), job.recipe)
            result = RowResult(row, outcome.result.scores, outcome, outcome.cost)
            if baseline.choice is None:
                record_row(result, self._records, self._ingredients.objective)
        elif isinstance(outcome.result, Trained) and baseline.trial is not None:
            result = Kept(outcome.result.recipe, outcome.cost, outcome.result.losses)
            self._records.keep(baseline.trial, result)
        else:
            reason = outcome.result.reason if isinstance(outcome.result, Failed) else "a job of another kind came back"
            _log.warning("a step of baseline %s failed: %s", baseline.spec.name, reason)
        baseline.take(place, result)
        self._go_on(baseline)

    def _store(self, baseline: _Baseline, choice: Choice, result: RowResult) -> None:
        made = replace(
            new_row(result, self._ingredients.objective),
            cost=choice.cost + baseline.cost,
            made=baseline.made,
            losses=choice.losses,
        )
        self._records.add(made, baseline.trial)

    def _follow(self, progress: Progress) -> None:
        """Store a point of the loss curve: the mean over the sources."""
        self._on_progress(progress)
        baseline = self._owners.get(progress.key)
        if baseline is None or baseline.trial is None:
            return
        if progress.step % max(1, progress.steps // POINTS) == 0 or progress.step == progress.steps:
            names = [ref.name for ref in self._ingredients.experts if ref.name in progress.losses]
            loss = sum(progress.losses[name] for name in names) / max(1, len(names))
            self._records.report(baseline.trial, progress.step, loss)


def made_key(baseline: BaselineSpec, ingredients: Ingredients) -> str:
    """Identifies how a baseline is made: its name, its settings and, for one that is trained, its texts."""
    content: dict[str, object] = {"name": baseline.name, "settings": baseline.settings}
    if baseline.name == "dam-from-best" and ingredients.best is not None:
        content["best"] = ingredients.best.digest
    if baseline.name in TRAINED:
        calibrations = {expert.name: expert.calibration for expert in ingredients.spec.experts}
        content["calibration"] = {
            name: each and (each.task or _digest_of(Path(str(each.file))), each.items)
            for name, each in calibrations.items()
        }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
