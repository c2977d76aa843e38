"""Sibling studies: `NAME/baselines` and `NAME/held-out`. Trials without params, one per row of the leaderboard.

They are separate from the search because one finished trial without params would switch off an Optuna sampler that
takes its space from the trials.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.artifacts import ArtifactMeta
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from evomerge.errors import InvalidInput
from evomerge.evaluation.aggregates import CUSTOM
from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.jobs import Cost, Outcome
from evomerge.object_store.artifact_folder import ArtifactFolder
from evomerge.recipe import Recipe, RecipeSet
from evomerge.storage import attributes
from evomerge.storage.attributes import read_document, read_text, write_document, write_text
from evomerge.storage.patience import IMPATIENT, StoragePatience
from evomerge.study.item_outcomes import ITEMS, ItemOutcome, read_items
from evomerge.study.trial_writer import TrialWriter
from evomerge.study.trials import read_cost, value_of


@dataclass(frozen=True, kw_only=True)
class Record:
    """A row that has been scored.

    Attributes:
        label: a source's name, a baseline's name, or "trial 17".
        digest: of the recipe that was scored.
        value, stderr: the objective.
        tasks: task -> {value, stderr, metric, higher_is_better, aggregate, items}.
        seconds: of scoring it, by phase.
        cost: of choosing a baseline; of other rows: of scoring it once.
        made: of a baseline: digest of its name, settings and data.
        losses: of a trained baseline: source -> (loss before, loss at the end).
        params: of a baseline that is a point of the search space.
        models: of a row that is several models: the summary of its `RecipeSet`. Empty for one model.
    """

    label: str
    digest: str
    value: float
    stderr: float | None
    tasks: Mapping[str, Mapping[str, Any]]
    seconds: Mapping[str, float]
    cost: Cost
    trial: FrozenTrial
    made: str | None = None
    losses: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model_count(self) -> int:
        """Number of models that the row is."""
        return len(self.models["recipes"]) if self.models else 1

    @property
    def recipe(self) -> Recipe:
        """The one recipe of a baseline, of the sampler's mean or of a winner.

        Raises:
            InvalidInput: the row is another one, or several models.
        """
        recipe = self.stored_recipe
        if isinstance(recipe, RecipeSet):
            raise InvalidInput(f"row {self.label!r} is {self.model_count} models: it has no single recipe")
        return recipe

    @property
    def stored_recipe(self) -> Recipe | RecipeSet:
        """The recipe of a baseline, of the sampler's mean or of a winner; or the recipes of a baseline.

        Raises:
            InvalidInput: the row is another one.
        """
        text = read_text(self.trial, attributes.MERGE)
        if text is None:
            raise InvalidInput(f"row {self.label!r} keeps no recipe: it is a source, a step, or a trial of the search")
        return RecipeSet.from_json(text) if self.models else Recipe.from_json(text)


@dataclass(frozen=True, kw_only=True)
class NewRow:
    """A row that is to be stored. Only baselines have `made`; their recipe is stored, too, or with `keep_recipe`.

    Attributes:
        companion: see `Assessment`; a trial that is this merge takes it over with the scores.
    """

    label: str
    recipe: Recipe | RecipeSet
    scores: Scores
    value: float
    stderr: float | None
    seconds: Mapping[str, float]
    companion: float | None = None
    cost: Cost = field(default_factory=Cost)
    made: str | None = None
    losses: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    keep_recipe: bool = False


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training: a recipe, its cost, and source -> (loss of the uniform soup, loss at the end)."""

    recipe: Recipe
    cost: Cost
    losses: Mapping[str, tuple[float, float]]


class Records:
    """The rows of one sibling study. A row is scored once per recipe and found again when the search is resumed.

    Args:
        check_hold: raises when another controller has taken the study over.
        patience: with which the folder of artifacts is waited for; the storage has its own.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        *,
        artifacts: Path,
        check_hold: Callable[[], None] = lambda: None,
        patience: StoragePatience = IMPATIENT,
    ) -> None:
        self._check_hold = check_hold
        self.study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
        self._storage = storage
        self._artifacts = artifacts
        self._patience = patience
        self._writer = TrialWriter(self.study, storage, artifacts=artifacts, check_hold=check_hold, patience=patience)

    def __iter__(self) -> Iterator[Record]:
        return iter(read_records(self.study))

    def find(self, label: str, recipe: Recipe | RecipeSet) -> Record | None:
        """The latest row of that label and recipe; where the items of an earlier one were lost, it was scored again."""
        wanted = recipe.digest
        return next((row for row in reversed(list(self)) if row.label == label and row.digest == wanted), None)

    def find_made(self, label: str, made: str) -> Record | None:
        """The latest row of a baseline that was made in that way."""
        return next((row for row in reversed(list(self)) if row.label == label and row.made == made), None)

    def begin(self, label: str, made: str) -> int:
        """The number of the row of a baseline that takes long: the one that a killed run has left, or a new one."""
        self._check_hold()
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.user_attrs.get(attributes.BEGUN) and trial.user_attrs.get(attributes.LABEL) == label:
                if trial.user_attrs.get(attributes.MADE) == made:
                    return trial.number
                self._fail(trial.number)
        return self._writer.add(partial(self._begin, label, made)).number

    def _begin(self, label: str, made: str, trial: optuna.Trial) -> None:
        self._writer.set(trial.number, attributes.LABEL, label)
        self._writer.set(trial.number, attributes.MADE, made)
        self._writer.set(trial.number, attributes.BEGUN, True)

    def keep(self, number: int, trained: TrainingResult) -> None:
        """Store the result of a training, before it is scored."""

        def store() -> None:
            self._writer.set_cost(number, trained.cost)
            self._writer.set(number, attributes.LOSSES, {name: list(ends) for name, ends in trained.losses.items()})
            write_text(self._writer.attributes_of(number), attributes.MERGE, trained.recipe.to_json())

        self._writer.transaction(store)

    def kept(self, number: int) -> TrainingResult | None:
        """Result of the training of a row that was begun; None while it has not ended."""
        trial = self.study.get_trials(deepcopy=False)[number]
        if attributes.MERGE not in trial.user_attrs:
            return None
        return TrainingResult(
            Recipe.from_json(str(read_text(trial, attributes.MERGE))), read_cost(trial), _losses(trial)
        )

    def fail(self, label: str, made: str, reason: str, number: int | None = None, *, by_machine: bool = False) -> None:
        """Store the reason why a baseline could not be built, in the row that was begun for it or in a new one.

        Args:
            by_machine: the machine failed, and not the baseline: the next run tries it again.
        """
        number = self.begin(label, made) if number is None else number
        self._fail(number, lambda: self._set_failure(number, reason, by_machine))

    def leave_out(self, label: str, recipe: str, reason: str, *, by_machine: bool = False) -> None:
        """Store the reason why a row has no score.

        Args:
            recipe: digest of its recipe; "" where it has none.
            by_machine: the machine failed, and not the merge: the next run tries it again.
        """
        self._check_hold()

        def fill(trial: optuna.Trial) -> None:
            self._writer.set(trial.number, attributes.LABEL, label)
            self._writer.set(trial.number, attributes.RECIPE, recipe)
            self._set_failure(trial.number, reason, by_machine)

        self._fail(self._writer.add(fill).number)

    def _set_failure(self, number: int, reason: str, by_machine: bool) -> None:
        self._writer.set(number, attributes.FAILURE, reason[:1000])
        if by_machine:
            self._writer.set(number, attributes.MACHINE, True)

    def report(self, number: int, step: int, loss: float) -> None:
        """An intermediate value of a row: Optuna Dashboard shows them as a curve. One that is not finite is none."""
        if not math.isfinite(loss):
            return
        self._writer.report(number, step, loss)

    def add(self, row: NewRow, number: int | None = None) -> Record:
        """Store a scored row, as a trial of its own or in the place of one that was begun."""
        self._check_hold()
        self._fail_interrupted(but=number)
        number = self._writer.add().number if number is None else number
        artifact = self._writer.upload(row.scores)
        self._writer.finish(number, TrialState.COMPLETE, partial(self._set_row, row, number, artifact), row.value)
        return read_record(self.study.get_trials(deepcopy=False)[number])

    def _set_row(self, row: NewRow, number: int, artifact: ArtifactMeta) -> None:
        target = self._writer.attributes_of(number)
        self._writer.attach(number, artifact)
        self._writer.set(number, attributes.LABEL, row.label)
        self._writer.set_result(number, row.recipe, row.scores, row.stderr)
        self._writer.set_companion(number, row.companion)
        self._writer.set_effort(number, row.seconds, row.cost)
        if row.made is not None:
            self._writer.set(number, attributes.MADE, row.made)
        if row.made is not None or row.keep_recipe:
            write_text(target, attributes.MERGE, row.recipe.to_json())
        if isinstance(row.recipe, RecipeSet):
            write_document(target, attributes.MODELS, row.recipe.summary())
        if row.params:
            write_document(target, attributes.PARAMS, dict(row.params))
        if row.losses:
            self._writer.set(number, attributes.LOSSES, {name: list(ends) for name, ends in row.losses.items()})

    def discard_checkpoints(self, outcome: Outcome) -> None:
        """See `TrialWriter.discard_checkpoints`."""
        self._writer.discard_checkpoints(outcome)

    def scores(self, row: Record) -> Scores | None:
        """The outcomes of a row by item; None where the artifact is gone: it is scored again then."""
        return read_scores(self._artifacts, self._storage, row.trial, self._patience)

    def _fail_interrupted(self, but: int | None) -> None:
        """Fail the rows that a killed run was storing. Those that were begun, and can be resumed, stay."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number != but and not trial.user_attrs.get(attributes.BEGUN):
                self._fail(trial.number)

    def _fail(self, number: int, write: Callable[[], None] = lambda: None) -> None:
        self._writer.finish(number, TrialState.FAIL, write)


def read_records(study: optuna.Study) -> list[Record]:
    """All rows of a sibling study, in order of scoring."""
    return [read_record(trial) for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]


def read_record(trial: FrozenTrial) -> Record:
    """A finished trial as a row."""
    attrs = trial.user_attrs
    scores = read_document(trial, attributes.SCORES)
    return Record(
        label=attrs.get(attributes.LABEL, f"trial {trial.number}"),
        digest=attrs[attributes.RECIPE],
        value=math.nan if (value := value_of(trial)) is None else value,
        stderr=scores["objective_stderr"],
        tasks=scores["tasks"],
        seconds=attrs.get(attributes.SECONDS, {}),
        cost=read_cost(trial),
        trial=trial,
        made=attrs.get(attributes.MADE),
        losses=_losses(trial),
        params=read_document(trial, attributes.PARAMS) if attributes.PARAMS in attrs else {},
        models=read_document(trial, attributes.MODELS) if attributes.MODELS in attrs else {},
    )


def _losses(trial: FrozenTrial) -> dict[str, tuple[float, float]]:
    return {name: (first, last) for name, (first, last) in trial.user_attrs.get(attributes.LOSSES, {}).items()}


def read_scores(
    artifacts: Path, storage: BaseStorage, trial: FrozenTrial, patience: StoragePatience = IMPATIENT
) -> Scores | None:
    """The scores of a trial with their per-item outcomes, from its artifact; None where that is missing."""
    path = items_path(artifacts, storage, trial, patience)
    if path is None:
        return None
    try:
        items = read_items(path)
    except ValueError:  # a file that a power failure cut short; pyarrow's errors are ValueErrors
        return None
    tasks = read_document(trial, attributes.SCORES)["tasks"]
    return Scores(
        tasks={task: _task_scores(content, items[task]) for task, content in tasks.items()},
        seconds=trial.user_attrs.get(attributes.SECONDS, {}),
        companion=trial.user_attrs.get(attributes.COMPANION),
    )


def _task_scores(content: Mapping[str, Any], items: Mapping[int, ItemOutcome]) -> TaskScores:
    weights = tuple(item.weight for item in items.values() if item.weight is not None)
    return TaskScores(
        metric=content["metric"],
        higher_is_better=content["higher_is_better"],
        items=tuple(items),
        outcomes=tuple(item.outcome for item in items.values()),
        value=content["value"],
        stderr=content["stderr"],
        aggregate=content.get("aggregate", CUSTOM),
        weights=weights or None,
    )


def items_path(
    artifacts: Path, storage: BaseStorage, trial: FrozenTrial, patience: StoragePatience = IMPATIENT
) -> Path | None:
    """The latest Parquet artifact of a trial whose bytes are really there.

    Optuna and earlier releases name an artifact before they write its bytes: a crash can leave a name without a file.
    """
    folder = ArtifactFolder(artifacts, patience)
    for meta in reversed(optuna.artifacts.get_all_artifact_meta(trial, storage=storage)):
        if meta.filename == ITEMS and (path := folder.find(meta.artifact_id)) is not None:
            return path
    return None
