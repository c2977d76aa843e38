"""Private names of Optuna: no other file uses them, but for `single_writer`, which extends Optuna's cache.

They may change with any release. Each is used because the public way is slow (a query per trial) or does not exist.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

from optuna import Study, Trial
from optuna._typing import JSONSerializable
from optuna.artifacts._upload import ARTIFACTS_ATTR_PREFIX as ARTIFACT
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages import _CachedStorage as CachedStorage
from optuna.storages._rdb import models
from optuna.storages.journal import BaseJournalBackend
from optuna.storages.journal._storage import JournalOperation
from optuna.storages.journal._storage import JournalStorageReplayResult as ReplayResult
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Integer, String, Text, column, table

__all__ = [
    "ARTIFACT",
    "STUDY_ATTRIBUTES",
    "CachedStorage",
    "FrozenStudy",
    "JSONSerializable",
    "JournalOperation",
    "ReplayResult",
    "backend_of",
    "cached_trials",
    "id_of",
    "id_of_study",
    "is_stopped",
    "journal_of",
    "models",
    "stoppable",
    "storage_of",
    "with_further_trials",
]

# The table of a relational storage in which Optuna keeps the user attributes of studies; both are unique together.
STUDY_ATTRIBUTES: Final = table(
    "study_user_attributes", column("study_id", Integer), column("key", String), column("value_json", Text)
)


def id_of(trial: Trial | FrozenTrial) -> int:
    """The number by which a storage knows a trial; storages take no other."""
    return trial._trial_id


def id_of_study(study: Study) -> int:
    """The number by which a storage knows a study."""
    return study._study_id


def storage_of(study: Study) -> BaseStorage:
    """The storage of a study, with the cache around it."""
    return study._storage


def backend_of(storage: BaseStorage) -> BaseStorage:
    """The storage behind Optuna's cache, or the storage itself where it has none."""
    return storage._backend if isinstance(storage, CachedStorage) else storage


def journal_of(storage: JournalStorage) -> BaseJournalBackend:
    """The file or server that the entries of a journal are appended to."""
    return storage._backend


def cached_trials(study: Study, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
    """The trials of a study, read at most once per proposal. They are the study's own: never change them."""
    return study._get_trials(deepcopy=False, states=states, use_cache=True)


@contextmanager
def stoppable(study: Study) -> Iterator[None]:
    """Allow `study.stop()` during the block, as in a callback of `Study.optimize`; `is_stopped` is true afterwards."""
    local = study._thread_local
    before, local.in_optimize_loop = local.in_optimize_loop, True
    try:
        yield
    finally:
        local.in_optimize_loop = before


def is_stopped(study: Study) -> bool:
    """Whether `study.stop()` was called on this study object."""
    return study._stop_flag


def with_further_trials(study: Study, further: Sequence[FrozenTrial]) -> Study:
    """A view of a study for a sampler, with some further trials wherever it asks for pruned ones."""
    return cast(Study, _View(study, further))


class _View:
    def __init__(self, study: Study, further: Sequence[FrozenTrial]) -> None:
        self._viewed = study
        self._further = further

    def __getattr__(self, name: str) -> Any:
        return getattr(self._viewed, name)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        found = self._viewed._get_trials(deepcopy=deepcopy, states=states, use_cache=use_cache)
        if states is None or TrialState.PRUNED not in states:
            return found
        return sorted([*found, *self._further], key=lambda trial: trial.number)
