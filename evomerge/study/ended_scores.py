"""Outcomes of the trials that have ended, item by item, in the order in which they were told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from evomerge.evaluation.scores import Scores
from evomerge.samplers.base import in_tell_order
from evomerge.storage.patience import IMPATIENT, StoragePatience
from evomerge.study.rows import read_scores


def ended_scores(
    study: optuna.Study, storage: BaseStorage, artifacts: Path, patience: StoragePatience = IMPATIENT
) -> Iterator[Scores]:
    """The scores of complete trials on all items, and of dropped ones on those that they were scored on.

    A trial whose artifact is lost is left out.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    for trial in in_tell_order(trials):
        scores = read_scores(artifacts, storage, trial, patience)
        if scores is not None:
            yield scores
