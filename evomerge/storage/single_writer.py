"""The storage of a study's only writer: it never reads back from the database what this process has written.

Optuna's cache reads every unfinished trial again for each question, at two to three milliseconds each: with 32 workers
that is most of what a proposal costs; and it stores each parameter and attribute with statements of its own. The
process that holds a study (see `lock`) knows every change of it, and stores the changes of a transaction together.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, select
from sqlalchemy.exc import SQLAlchemyError

from evomerge.storage.optuna_internals import CachedStorage, JSONSerializable, id_of
from evomerge.trial_store.trial_memory import KeepsTrials, TrialMemory, loose, with_changes
from evomerge.trial_store.trial_rows import (
    STUDY_SYSTEM,
    STUDY_USER,
    SYSTEM,
    TRIALS,
    USER,
    PendingRows,
    add_trial,
    now,
    read_trials,
    set_number,
    to_local,
)

__all__ = ["SingleWriterStorage"]


class SingleWriterStorage(CachedStorage, KeepsTrials):
    """A relational storage that keeps all trials in memory and writes through. For studies that nobody else writes to.

    Trials that are given out are never changed afterwards: a write puts a new one in the place of the old one. Trials
    that somebody else adds, such as by `enqueue_trial`, are found when the next one is added here.
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self._memories: dict[int, TrialMemory] = {}  # of the studies of which all trials are in memory
        self._system: dict[int, dict[str, Any]] = {}  # system attributes of studies, among them a note of every trial
        self._connection: Connection | None = None  # of the transaction that is open
        self._pending = PendingRows(backend.engine.dialect.name)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Store all writes of the block at once when it ends, or none of them when it raises.

        Raises:
            StorageInternalError: the transaction was not stored, as far as is known.
        """
        sessions = self._backend.scoped_session
        try:
            # A session that is bound to a connection with an open transaction joins it: its own commits only flush.
            with self._backend.engine.begin() as connection:
                sessions.remove()
                sessions.configure(bind=connection)
                self._connection = connection
                try:
                    yield
                    self._pending.store(connection)
                finally:
                    self._connection, self._pending = None, PendingRows(connection.dialect.name)
                    try:
                        sessions.remove()
                    finally:  # also where the connection has died
                        sessions.configure(bind=self._backend.engine)
        except SQLAlchemyError as error:
            self._forget()
            raise StorageInternalError("a transaction was not stored") from error
        except BaseException:
            self._forget()
            raise

    def memory(self, study_id: int) -> TrialMemory:
        if study_id not in self._memories:
            self._backend.get_study_name_from_id(study_id)  # a KeyError where there is no such study
            with self._reading() as connection:
                trials = read_trials(connection, study_id)
            self._memories[study_id] = TrialMemory(trials)
            for trial in trials:
                self._note_place(study_id, trial)
        return self._memories[study_id]

    def find_added(self, study_id: int) -> None:
        """Take up the trials that somebody else has added, such as by `enqueue_trial`, in one query."""
        memory = self.memory(study_id)
        with self._reading() as connection:
            for other in read_trials(connection, study_id, above=memory.latest_id):
                self._add(study_id, memory, other)

    def delete_study(self, study_id: int) -> None:
        super().delete_study(study_id)
        self._forget()

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        with self._writing():
            self._pending.attribute(STUDY_USER, study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: JSONSerializable) -> None:
        with self._writing():
            stored = self._pending.attribute(STUDY_SYSTEM, study_id, key, value)
            if study_id in self._system:
                self._system[study_id][key] = json.loads(stored)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        self._store_pending()
        return super().get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        if study_id not in self._system:  # genetic samplers ask for them with every proposal
            self._store_pending()
            self._system[study_id] = super().get_study_system_attrs(study_id)
        return self._system[study_id]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        chosen = self.memory(study_id).select(states)
        return copy.deepcopy(chosen) if deepcopy else chosen

    def get_trial(self, trial_id: int) -> FrozenTrial:
        _, known = self._find(trial_id)
        return known if known.state.is_finished() else loose(known)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        memory = self.memory(study_id)
        with self._writing() as connection:
            trial = _new(len(memory), template_trial, now(connection.dialect.name))
            trial_id = add_trial(connection, study_id, trial)
            for other in read_trials(connection, study_id, above=memory.latest_id, below=trial_id):
                self._add(study_id, memory, other)
            if len(memory) != trial.number:
                set_number(connection, trial_id, len(memory))
            trial = with_changes(trial, _number=len(memory), _trial_id=trial_id)
            self._add(study_id, memory, trial)
            self._pending.content(trial)
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        memory, trial = self._unfinished(trial_id)
        memory.check_distribution(param_name, distribution)
        if param_name in trial.params:
            return
        with self._writing():
            self._pending.param(trial_id, param_name, param_value_internal, distribution)
            value = distribution.to_external_repr(param_value_internal)
            params, distributions = (
                {**trial.params, param_name: value},
                {**trial.distributions, param_name: distribution},
            )
            memory.replace(with_changes(trial, params=params, distributions=distributions))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        memory, trial = self._unfinished(trial_id)
        with self._writing():
            stored = json.loads(self._pending.attribute(USER, trial_id, key, value))
            memory.replace(with_changes(trial, user_attrs={**trial.user_attrs, key: stored}))

    def set_trial_system_attr(self, trial_id: int, key: str, value: JSONSerializable) -> None:
        memory, trial = self._unfinished(trial_id)
        with self._writing():
            stored = json.loads(self._pending.attribute(SYSTEM, trial_id, key, value))
            memory.replace(with_changes(trial, system_attrs={**trial.system_attrs, key: stored}))

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        memory, trial = self._unfinished(trial_id)
        with self._writing():
            self._pending.intermediate(trial_id, step, intermediate_value)
            steps = {**trial.intermediate_values, step: intermediate_value}
            memory.replace(with_changes(trial, intermediate_values=steps))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        memory, trial = self._unfinished(trial_id)
        if state is TrialState.RUNNING and trial.state is not TrialState.WAITING:
            return False
        with self._writing() as connection:
            changes: dict[str, Any] = {"state": state}
            if values is not None:
                for objective, value in enumerate(values):
                    self._pending.value(trial_id, objective, value)
                changes["values"] = list(values)
            time = now(connection.dialect.name)
            times = dict.fromkeys(_times_of(state), time)
            changes |= {column: to_local(time) for column in times}
            self._pending.state(trial_id, trial.state, state, times)
            memory.replace(with_changes(trial, **changes))
        return True

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """The connection of the open transaction, or of one for this write alone."""
        if self._connection is not None:
            yield self._connection
            return
        with self.transaction():
            assert self._connection is not None  # it was opened in the line above
            yield self._connection

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """The connection of the open transaction, with all that it has written, or one for this question alone."""
        if self._connection is not None:
            self._store_pending()
            yield self._connection
            return
        try:
            with self._backend.engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StorageInternalError("the trials could not be read") from error

    def _store_pending(self) -> None:
        if self._connection is not None:
            self._pending.store(self._connection)

    def _unfinished(self, trial_id: int) -> tuple[TrialMemory, FrozenTrial]:
        memory, trial = self._find(trial_id)
        self.check_trial_is_updatable(trial_id, trial.state)
        return memory, trial

    def _find(self, trial_id: int) -> tuple[TrialMemory, FrozenTrial]:
        place = self._trial_id_to_study_id_and_number.get(trial_id)
        if place is None:  # not asked for by its study so far
            with self._reading() as connection:
                study_id = connection.scalar(select(TRIALS.c.study_id).where(TRIALS.c.trial_id == trial_id))
            if study_id is None or study_id in self._memories:
                raise KeyError(f"there is no trial with id {trial_id}")
            self.memory(study_id)
            place = self._trial_id_to_study_id_and_number[trial_id]
        study_id, number = place
        memory = self.memory(study_id)
        return memory, memory[number]

    def _add(self, study_id: int, memory: TrialMemory, trial: FrozenTrial) -> None:
        memory.add(trial)
        self._note_place(study_id, trial)

    def _note_place(self, study_id: int, trial: FrozenTrial) -> None:
        self._trial_id_to_study_id_and_number[id_of(trial)] = (study_id, trial.number)
        self._study_id_and_number_to_trial_id[study_id, trial.number] = id_of(trial)

    def _forget(self) -> None:
        """After a transaction that was not stored, memory holds what the database does not."""
        self._memories.clear()
        self._system.clear()
        self._studies.clear()
        self._trial_id_to_study_id_and_number.clear()
        self._study_id_and_number_to_trial_id.clear()


def _new(number: int, template: FrozenTrial | None, start: datetime) -> FrozenTrial:
    """A trial that has no row yet."""
    if template is not None:
        return with_changes(copy.deepcopy(template), _number=number)
    return FrozenTrial(
        number=number,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=to_local(start),
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
        trial_id=-1,
    )


def _times_of(state: TrialState) -> tuple[str, ...]:
    """The times that a trial is given when it gets into a state."""
    if state is TrialState.RUNNING:
        return ("datetime_start",)
    return ("datetime_complete",) if state.is_finished() else ()
