"""Results of a search that are lost or doubled, by what its study and the files of its items say."""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import TrialState

from evomerge.storage import attributes
from evomerge.storage.opening import open_storage, release


def findings(url: str, name: str, artifacts: Path, wanted: int) -> dict[str, int]:
    """Numbers of results that are finished, failed, lost and doubled, and of those whose items are.

    Args:
        wanted: trials that the search was to have.
    """
    storage = open_storage(url)
    try:
        trials = optuna.load_study(storage=storage, study_name=name).get_trials(deepcopy=False)
        files = [
            [meta.artifact_id for meta in get_all_artifact_meta(trial, storage=storage)]
            for trial in trials
            if trial.state is TrialState.COMPLETE
        ]
    finally:
        release(storage)
    ended = [each for each in trials if each.state.is_finished() and not each.user_attrs.get(attributes.INTERRUPTED)]
    told = [trial.user_attrs.get(attributes.TELL) for trial in ended]
    return {
        "finished": len(ended),
        "failed": sum(trial.state is TrialState.FAIL for trial in ended),
        "lost": len(set(range(wanted)) - set(told)) + sum(not trial.state.is_finished() for trial in trials),
        "doubled": len(told) - len(set(told)),
        "items_lost": sum(not any((artifacts / each).is_file() for each in those) for those in files),
        "items_doubled": sum(len(those) > 1 for those in files),
    }
