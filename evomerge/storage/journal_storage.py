"""The storage of a journal: what a transaction writes is appended at once, and the journal is read in large pieces.

Optuna appends each parameter and attribute by itself, each with a wait for disk or server, and applies each to a copy
of its trial when a journal is opened. What it finds in a journal of this class is what it would have written.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Final, TypeVar

from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState

from evomerge.storage.journals import FileJournal, JournalOvertaken, RedisJournal
from evomerge.storage.optuna_internals import JournalOperation
from evomerge.trial_store.journal_replay import JournalReplay
from evomerge.trial_store.trial_memory import KeepsTrials, TrialMemory, loose

__all__ = ["TransactionalJournalStorage"]

_TRIES: Final = 3  # of a transaction that others overtake, before what it writes is appended entry by entry

Log = dict[str, Any]
_Result = TypeVar("_Result")


class TransactionalJournalStorage(JournalStorage, KeepsTrials):
    """The storage of a journal, with transactions. One is repeated where somebody else has written to its studies.

    A journal is shared by all studies of a file or a Redis database, each of which may have a controller of its own.
    """

    def __init__(self, journal: FileJournal | RedisJournal) -> None:
        self._journal = journal
        self._unwritten: list[Log] | None = []  # of the transaction that is open: nothing is read meanwhile
        self._created: dict[int, Log] = {}  # by id, the trials that it has created
        super().__init__(journal)
        self._unwritten = None
        self._stale = True
        self._sync_with_backend()

    def store(self, write: Callable[[], _Result]) -> _Result:
        """Append all that `write` writes at once, or nothing of it; again where somebody else has written meanwhile.

        A proposal may take seconds, and others never leave it so many: after some tries its trial is written as Optuna
        does it, each entry behind the fence. A run that ends in between leaves a trial that the next one fails.
        """
        if self._unwritten is not None:
            return write()
        for number in count(1):
            try:
                with self.transaction():
                    return write()
            except JournalOvertaken:
                if number >= _TRIES and self._created:
                    break
        return write()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Append all operations of the block at once when it ends, or none of them when it raises.

        Raises:
            JournalOvertaken: somebody else has written to the same studies meanwhile; the block can be repeated.
        """
        with self._thread_lock:
            self._sync_with_backend()
        self._unwritten, self._created = [], {}
        try:
            yield
            if logs := self._unwritten:
                self._append(logs)
        except BaseException:
            self._stale = True  # memory holds what the journal does not
            raise
        finally:
            self._unwritten = None

    def _append(self, logs: Sequence[Log]) -> None:
        """Append the operations of a transaction behind those of others that have nothing to do with them."""
        while True:
            known = self._replay_result.log_number_read
            try:
                self._journal.append_after(known, list(logs))
            except JournalOvertaken:
                others = list(self._journal.read_logs(known))
                if not self._commute(logs, others):
                    raise
                with self._thread_lock:
                    self._replay.apply_logs(others)
            else:
                self._replay_result.log_number_read += len(logs)
                return

    def _commute(self, logs: Sequence[Log], others: Sequence[Log]) -> bool:
        """Whether our operations, which memory has already, mean the same behind those of others."""
        creates = any(log["op_code"] == JournalOperation.CREATE_TRIAL for log in others)
        if not others or (creates and self._created):  # ids of trials are counted over all studies
            return False
        ours, theirs = ({self._replay.study_of(log) for log in each} for each in (logs, others))
        return None not in ours | theirs and not ours & theirs

    def memory(self, study_id: int) -> TrialMemory:
        with self._thread_lock:
            self._sync_with_backend()
            return self._replay.memory(study_id)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        chosen = self.memory(study_id).select(states)
        return copy.deepcopy(chosen) if deepcopy else chosen

    def get_trial(self, trial_id: int) -> FrozenTrial:
        trial = super().get_trial(trial_id)
        return trial if trial.state.is_finished() else loose(trial)

    def _write_log(self, op_code: int, extra_fields: Log) -> None:
        if self._unwritten is None:
            super()._write_log(op_code, extra_fields)
            return
        log = {"op_code": int(op_code), "worker_id": self._replay_result.worker_id, **extra_fields}
        self._replay.apply(json.loads(json.dumps(log)))
        if op_code == JournalOperation.CREATE_TRIAL:
            self._created[self._replay.latest] = log
        elif op_code == JournalOperation.SET_TRIAL_PARAM and log["trial_id"] in self._created:
            _add_param(self._created[log["trial_id"]], log)
            return
        self._unwritten.append(log)

    def _sync_with_backend(self) -> None:
        if self._unwritten is not None:
            return
        if not self._stale:
            super()._sync_with_backend()
            return
        known = self._replay_result.log_number_read
        self._replay = self._replay_result = JournalReplay(self._worker_id_prefix)
        for logs in self._journal.load():
            self._replay.apply_logs(logs, known)
        self._replay.given_out = True
        self._stale = False


def _add_param(created: Log, log: Log) -> None:
    """Make a parameter part of the operation that creates its trial, in the form in which Optuna adds whole trials."""
    if "params" not in created:
        empty: Log = {
            name: {} for name in ("params", "distributions", "user_attrs", "system_attrs", "intermediate_values")
        }
        created |= {"state": int(TrialState.RUNNING), "value": None, "values": None, **empty}
    created["params"][log["param_name"]] = log["param_value_internal"]
    created["distributions"][log["param_name"]] = log["distribution"]
