"""The incumbent: outcomes of the best candidate, item by item, which others race against. Stored in the study."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage

from evomerge.errors import InvalidInput
from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.forms import parse_json, reading
from evomerge.storage import attributes
from evomerge.storage.attributes import read_text
from evomerge.storage.patience import IMPATIENT, StoragePatience
from evomerge.study.rows import read_scores
from evomerge.study.trials import best_trials

_ASKED = 20  # trials whose artifacts are looked at before racing continues without an incumbent


def incumbent_text(trial: int, scores: Scores) -> str:
    """The text that a study stores of an incumbent."""
    return json.dumps({"trial": trial, "tasks": {task: asdict(score) for task, score in scores.tasks.items()}})


def read_incumbent(
    study: optuna.Study, storage: BaseStorage, artifacts: Path, patience: StoragePatience = IMPATIENT
) -> Scores | None:
    """The outcomes of the best complete trial: from the study, else from its artifact.

    Where both are lost, those of the next best trial that has them. None where there is none.
    """
    stored = _stored(study)
    for trial in best_trials(study, _ASKED):
        if stored is not None and stored["trial"] == trial.number:
            return Scores({task: _task(content) for task, content in stored["tasks"].items()}, {})
        scores = read_scores(artifacts, storage, trial, patience)
        if scores is not None:
            return scores
    return None


def _stored(study: optuna.Study) -> dict[str, Any] | None:
    try:
        text = read_text(study, attributes.INCUMBENT)
    except InvalidInput:  # its writing was cut short
        return None
    if text is None:
        return None
    with reading("the incumbent of the study"):
        return dict(parse_json(text))


def _task(content: dict[str, Any]) -> TaskScores:
    weights = content["weights"]
    return TaskScores(
        **{
            **content,
            "items": tuple(content["items"]),
            "outcomes": tuple(content["outcomes"]),
            "weights": None if weights is None else tuple(weights),
        }
    )
