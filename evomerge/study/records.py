"""Sibling studies: `NAME/baselines` and `NAME/held-out`. Trials without params, one per row of the leaderboard.

They stand apart from the search because one finished trial without params would switch an Optuna sampler off that takes
its space from the trials.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from evomerge.evaluation.evaluator import Scores, TaskScores
from evomerge.recipe import Recipe
from evomerge.study import attributes
from evomerge.study.attributes import read_document, write_document
from evomerge.study.items import read_items, summary
from evomerge.study.search_study import upload_items
from evomerge.study.storage import with_retries
from evomerge.worker import Outcome, Scored


@dataclass(frozen=True)
class Record:
    """A row that has been scored.

    Attributes:
        label: a source's name, a baseline's name, or "trial 17".
        digest: of the recipe that was scored.
        value, stderr: the objective.
        tasks: task -> {value, stderr, metric, higher_is_better, items}.
        seconds: by phase.
    """

    label: str
    digest: str
    value: float
    stderr: float | None
    tasks: Mapping[str, Mapping[str, Any]]
    seconds: Mapping[str, float]
    trial: FrozenTrial


class Records:
    """The rows of one sibling study. A row is scored once per recipe and found again when the search goes on."""

    def __init__(self, storage: BaseStorage, name: str, artifacts: Path) -> None:
        self.study = with_retries(
            lambda: optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
        )
        self._storage = storage
        self._artifacts = artifacts

    def __iter__(self) -> Iterator[Record]:
        return iter(read_records(self.study))

    def find(self, label: str, recipe: Recipe) -> Record | None:
        """The latest row of that label and recipe; where the items of an earlier one were lost, it was scored again."""
        wanted = recipe.digest
        return next((row for row in reversed(list(self)) if row.label == label and row.digest == wanted), None)

    def add(self, label: str, recipe: Recipe, outcome: Outcome, value: float, stderr: float | None) -> Record:
        """Store a scored row."""
        assert isinstance(outcome.result, Scored)  # whoever asked for the score has dealt with failures
        scores = outcome.result.scores
        self._fail_interrupted()
        trial = with_retries(self.study.ask)
        upload_items(self._artifacts, self._storage, self.study.get_trials(deepcopy=False)[trial.number], scores)
        for key, content in (
            (attributes.LABEL, label),
            (attributes.RECIPE, recipe.digest),
            (attributes.SECONDS, {phase: round(seconds, 4) for phase, seconds in outcome.seconds.items()}),
        ):
            with_retries(lambda key=key, content=content: trial.set_user_attr(key, content))  # type: ignore[misc]
        document = {"objective_stderr": stderr, "tasks": summary(scores)}
        with_retries(lambda: write_document(trial, attributes.SCORES, document))
        with_retries(lambda: self.study.tell(trial, value, skip_if_finished=True))
        return read_record(self.study.get_trials(deepcopy=False)[trial.number])

    def scores(self, row: Record) -> Scores | None:
        """The outcomes of a row by item; None where the artifact is gone: it is scored again then, never guessed."""
        return read_scores(self._artifacts, self._storage, row.trial)

    def _fail_interrupted(self) -> None:
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            with_retries(lambda number=trial.number: self.study.tell(number, state=TrialState.FAIL))  # type: ignore[misc]


def read_records(study: optuna.Study) -> list[Record]:
    """All rows of a sibling study, in order of scoring."""
    return [read_record(trial) for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]


def read_record(trial: FrozenTrial) -> Record:
    attrs = trial.user_attrs
    scores = read_document(trial, attributes.SCORES)
    return Record(
        label=attrs.get(attributes.LABEL, f"trial {trial.number}"),
        digest=attrs[attributes.RECIPE],
        value=trial.value if trial.value is not None else float("nan"),
        stderr=scores["objective_stderr"],
        tasks=scores["tasks"],
        seconds=attrs.get(attributes.SECONDS, {}),
        trial=trial,
    )


def read_scores(artifacts: Path, storage: BaseStorage, trial: FrozenTrial) -> Scores | None:
    """The scores of a trial with their per-item outcomes, from its artifact; None where that is missing."""
    path = items_path(artifacts, storage, trial)
    if path is None:
        return None
    try:
        outcomes = read_items(path)
    except ValueError:  # a file that a power failure cut short; pyarrow's errors are ValueErrors
        return None
    tasks = read_document(trial, attributes.SCORES)["tasks"]
    return Scores(
        tasks={
            task: TaskScores(
                metric=content["metric"],
                higher_is_better=content["higher_is_better"],
                items=tuple(outcomes[task]),
                outcomes=tuple(outcomes[task].values()),
                value=content["value"],
                stderr=content["stderr"],
            )
            for task, content in tasks.items()
        },
        seconds=trial.user_attrs.get(attributes.SECONDS, {}),
    )


def items_path(artifacts: Path, storage: BaseStorage, trial: FrozenTrial) -> Path | None:
    """The latest Parquet artifact of a trial whose bytes are really there.

    Optuna notes an artifact before it writes the bytes, so a crash can leave a note without a file.
    """
    metas = optuna.artifacts.get_all_artifact_meta(trial, storage=storage)
    for meta in reversed(metas):
        path = (artifacts / meta.artifact_id).resolve()
        if meta.filename == "items.parquet" and path.is_relative_to(artifacts.resolve()) and path.is_file():
            return path
    return None
