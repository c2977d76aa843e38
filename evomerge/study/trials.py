"""Trials of a study: how they are ranked, what they took, and how one is ended with all that belongs to it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import optuna
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from evomerge.evaluation.evaluator import Scores
from evomerge.jobs import Cost
from evomerge.storage import attributes
from evomerge.storage.opening import at_once
from evomerge.study.items import write_items


def best_trials(study: optuna.Study, count: int) -> list[FrozenTrial]:
    """The trials with the highest values, earlier ones first among equals; those that miss a constraint come last."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(complete, key=lambda trial: (not is_feasible(trial), -(value_of(trial) or 0.0), trial.number))[:count]


def value_of(trial: FrozenTrial) -> float | None:
    """The number that trials are ranked by: the value, or with several objectives the one that was stored for it."""
    stored = trial.user_attrs.get(attributes.VALUE)
    if stored is not None:
        return float(stored)
    return trial.values[0] if trial.values else None


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a finished trial meets all constraints."""
    return max(trial.user_attrs.get(attributes.VIOLATIONS, ()), default=0.0) <= 0


def read_cost(trial: FrozenTrial) -> Cost:
    """What a trial or row took."""
    return Cost(**trial.user_attrs.get(attributes.COST, {}))


def cost_to_json(cost: Cost) -> dict[str, float]:
    """What something took, as a small attribute."""
    return {name: round(value, 4) for name, value in asdict(cost).items()}


def finish_trial(
    study: optuna.Study,
    storage: BaseStorage,
    number: int,
    state: TrialState,
    note: Callable[[], None],
    value: float | Sequence[float] | None = None,
) -> None:
    """Tell a trial, with the attributes that `note` gives it."""

    def store() -> None:
        # What reported an error may have been stored all the same; its repetition then changes nothing.
        with suppress(UpdateFinishedTrialError):
            note()
            study.tell(number, value, state=state, skip_if_finished=True)

    at_once(storage, store)


def upload_items(folder: Path, storage: BaseStorage, trial: FrozenTrial, scores: Scores) -> None:
    """Keep the per-item outcomes of a trial that is not finished yet."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "items.parquet"
        write_items(path, scores)
        upload_artifact(
            artifact_store=FileSystemArtifactStore(folder),
            file_path=str(path),
            study_or_trial=trial,
            storage=storage,
            mimetype="application/vnd.apache.parquet",
        )
