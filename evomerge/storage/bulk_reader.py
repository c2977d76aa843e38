"""The storage of a process that reads studies which another one may write to: all trials come with a few queries."""

from __future__ import annotations

import copy
from collections.abc import Container
from threading import Lock

from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from evomerge.storage.optuna_internals import CachedStorage, id_of
from evomerge.trial_store.trial_rows import read_trials

__all__ = ["BulkReader"]


class BulkReader(CachedStorage):
    """Optuna's cache around a relational storage, with finished trials read once, and all together.

    Optuna makes an object of each row first: for 5,000 trials with 6 parameters that takes 14 times as long, and four
    times the memory. Trials that are given out are never changed afterwards.
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self._known: dict[int, dict[int, FrozenTrial]] = {}  # study -> id of a trial -> what was read last
        self._reads = Lock()

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        with self._reads:
            found = sorted(self._read(study_id).values(), key=lambda trial: trial.number)
        chosen = [trial for trial in found if states is None or trial.state in states]
        return copy.deepcopy(chosen) if deepcopy else chosen

    def _read(self, study_id: int) -> dict[int, FrozenTrial]:
        """All trials, of which those are read that were not finished before, or are newer."""
        if study_id not in self._known:
            self._backend.get_study_name_from_id(study_id)  # a KeyError where there is no such study
        known = self._known.setdefault(study_id, {})
        unfinished = (trial_id for trial_id, trial in known.items() if not trial.state.is_finished())
        first = min(unfinished, default=max(known, default=-1) + 1)
        with self._backend.engine.connect() as connection:
            trials = read_trials(connection, study_id, above=first - 1)
        known.update((id_of(trial), trial) for trial in trials)
        return known
