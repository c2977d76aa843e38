"""The storage of a study's only writer: it never reads back from the database what this process has written.

Optuna's cache reads every unfinished trial again for each question, at two to three milliseconds each: with 32 workers
that is most of what a proposal costs. The process that holds a study (see `lock`) knows every change of it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from evomerge.storage.optuna_internals import CachedStorage, JSONSerializable

__all__ = ["SingleWriterStorage"]


class SingleWriterStorage(CachedStorage):
    """A relational storage that keeps all trials in memory and writes through. For studies that nobody else writes to.

    Trials that are given out are never changed afterwards: a write puts a new one in the place of the old one.
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self._complete: set[int] = set()  # studies of which all trials are in memory

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
                try:
                    yield
                finally:
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

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if study_id not in self._complete:
            super().get_all_trials(study_id, deepcopy=False)
            self._complete.add(study_id)
        trials = sorted(self._studies[study_id].trials.values(), key=lambda trial: trial.number)
        chosen = trials if states is None else [trial for trial in trials if trial.state in states]
        return copy.deepcopy(chosen) if deepcopy else chosen

    def get_trial(self, trial_id: int) -> FrozenTrial:
        known = self._known(trial_id)
        if known is None:
            return super().get_trial(trial_id)
        return known if known.state.is_finished() else _loose(known)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)

        def change(trial: FrozenTrial) -> None:
            trial.params = {**trial.params, param_name: distribution.to_external_repr(param_value_internal)}
            trial.distributions = {**trial.distributions, param_name: distribution}

        self._change(trial_id, change)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        super().set_trial_user_attr(trial_id, key, value)

        def change(trial: FrozenTrial) -> None:
            trial.user_attrs = {**trial.user_attrs, key: _stored(value)}

        self._change(trial_id, change)

    def set_trial_system_attr(self, trial_id: int, key: str, value: JSONSerializable) -> None:
        super().set_trial_system_attr(trial_id, key, value)

        def change(trial: FrozenTrial) -> None:
            trial.system_attrs = {**trial.system_attrs, key: _stored(value)}

        self._change(trial_id, change)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

        def change(trial: FrozenTrial) -> None:
            trial.intermediate_values = {**trial.intermediate_values, step: intermediate_value}

        self._change(trial_id, change)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        changed = super().set_trial_state_values(trial_id, state, values)
        known = self._known(trial_id)
        if known is not None:  # read back, because the storage sets the times
            study_id, number = self._trial_id_to_study_id_and_number[trial_id]
            self._studies[study_id].trials[number] = self._backend.get_trial(trial_id)
        return changed

    def _known(self, trial_id: int) -> FrozenTrial | None:
        study_id, number = self._trial_id_to_study_id_and_number.get(trial_id, (-1, -1))
        return self._studies[study_id].trials[number] if study_id in self._complete else None

    def _change(self, trial_id: int, change: Callable[[FrozenTrial], None]) -> None:
        known = self._known(trial_id)
        if known is not None:
            changed = copy.copy(known)
            change(changed)
            self._studies[self._trial_id_to_study_id_and_number[trial_id][0]].trials[known.number] = changed

    def _forget(self) -> None:
        """After a transaction that was not stored, memory holds what the database does not."""
        self._complete.clear()
        self._studies.clear()
        self._trial_id_to_study_id_and_number.clear()
        self._study_id_and_number_to_trial_id.clear()


def _loose(trial: FrozenTrial) -> FrozenTrial:
    """A copy that may be written to, as `optuna.Trial` writes to what it gets of an unfinished trial."""
    loose = copy.copy(trial)
    for name in ("params", "distributions", "user_attrs", "system_attrs", "intermediate_values"):
        setattr(loose, name, dict(getattr(trial, name)))
    return loose


def _stored(value: Any) -> Any:
    return json.loads(json.dumps(value))
