"""Relational storages that wait while their database is away."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from evomerge.storage.bulk_reader import BulkReader
from evomerge.storage.optuna_internals import CachedStorage, FrozenStudy, JSONSerializable, id_of
from evomerge.storage.patience import IMPATIENT, StoragePatience, is_away
from evomerge.storage.single_writer import SingleWriterStorage

__all__ = ["IDLE_SECONDS", "PatientReader", "PatientWriter"]

IDLE_SECONDS: Final = 120  # of a transaction in which nothing is sent, after which the server may end it

_Result = TypeVar("_Result")


class _EndedIdle(Exception):
    """A transaction was lost, and took so long that the server may have ended it for that."""


class _Patient(CachedStorage):
    """Repeats each call while the database is away. Inside a transaction nothing is: that is repeated as a whole.

    Args:
        awaited: the database as it may be shown.
        folder: of a database that is a file.
    """

    def __init__(self, backend: RDBStorage, patience: StoragePatience, awaited: str, folder: Path | None) -> None:
        super().__init__(backend)
        self._patience = patience
        self._awaited = awaited
        self._folder = folder
        self._in_transaction = False

    def patiently(self, call: Callable[[], _Result]) -> _Result:
        """Call again while the database is away.

        Raises:
            StorageAway: it is still away after the seconds of patience.
        """
        return call() if self._in_transaction else self._patience.retry(call, self._awaited, self._folder)

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        return self.patiently(lambda: super(_Patient, self).create_new_study(directions, study_name))

    def delete_study(self, study_id: int) -> None:
        self.patiently(lambda: super(_Patient, self).delete_study(study_id))

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self.patiently(lambda: super(_Patient, self).set_study_user_attr(study_id, key, value))

    def set_study_system_attr(self, study_id: int, key: str, value: JSONSerializable) -> None:
        self.patiently(lambda: super(_Patient, self).set_study_system_attr(study_id, key, value))

    def get_study_id_from_name(self, study_name: str) -> int:
        return self.patiently(lambda: super(_Patient, self).get_study_id_from_name(study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        return self.patiently(lambda: super(_Patient, self).get_study_name_from_id(study_id))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self.patiently(lambda: super(_Patient, self).get_study_directions(study_id))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self.patiently(lambda: super(_Patient, self).get_study_user_attrs(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self.patiently(lambda: super(_Patient, self).get_study_system_attrs(study_id))

    def get_all_studies(self) -> list[FrozenStudy]:
        return self.patiently(super().get_all_studies)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        self.patiently(
            lambda: super(_Patient, self).set_trial_param(trial_id, param_name, param_value_internal, distribution)
        )

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        return self.patiently(
            lambda: super(_Patient, self).get_trial_id_from_study_id_trial_number(study_id, trial_number)
        )

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self.patiently(lambda: super(_Patient, self).set_trial_intermediate_value(trial_id, step, intermediate_value))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.patiently(lambda: super(_Patient, self).set_trial_user_attr(trial_id, key, value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: JSONSerializable) -> None:
        self.patiently(lambda: super(_Patient, self).set_trial_system_attr(trial_id, key, value))

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self.patiently(lambda: super(_Patient, self).get_trial(trial_id))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return self.patiently(lambda: super(_Patient, self).get_all_trials(study_id, deepcopy, states))


class PatientReader(_Patient, BulkReader):
    """The storage of studies that another process may write to.

    It never repeats a call, which another process's writes could come between: see `IMPATIENT`.
    """

    def __init__(self, backend: RDBStorage, awaited: str, folder: Path | None) -> None:
        super().__init__(backend, IMPATIENT, awaited, folder)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        return self.patiently(lambda: super(PatientReader, self).create_new_trial(study_id, template_trial))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        return self.patiently(lambda: super(PatientReader, self).set_trial_state_values(trial_id, state, values))


class PatientWriter(_Patient, SingleWriterStorage):
    """The storage of a study's only writer."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._in_transaction = True
        try:
            with super().transaction():
                yield
        finally:
            self._in_transaction = False

    def find_added(self, study_id: int) -> None:
        self.patiently(lambda: super(PatientWriter, self).find_added(study_id))

    def store(self, write: Callable[[], _Result], stored: Callable[[], _Result | None]) -> _Result:
        """Store all that `write` writes in one transaction, again while the database is away.

        Args:
            stored: finds what a transaction has stored although it was not acknowledged, None where it was not.
        """
        if self._in_transaction:
            return write()
        failed = False

        def once() -> _Result:
            nonlocal failed
            if failed and (found := stored()) is not None:
                return found
            failed = True
            return self._in_time(write)

        try:
            return self.patiently(once)
        except _EndedIdle:
            return self._singly(write, stored)

    def _in_time(self, write: Callable[[], _Result]) -> _Result:
        clock = self._patience.clock
        begun = clock.monotonic()
        try:
            with self.transaction():
                return write()
        except Exception as error:
            if is_away(error) and clock.monotonic() - begun >= IDLE_SECONDS:
                raise _EndedIdle from error
            raise

    def _singly(self, write: Callable[[], _Result], stored: Callable[[], _Result | None]) -> _Result:
        """Store each write by itself, so that what is computed between them keeps no transaction open.

        A sampler that takes longer than the server allows would lose every transaction. A run that ends meanwhile
        leaves a trial that the next one fails.
        """
        if (found := self.patiently(stored)) is not None:
            return found
        self._patience.say(
            f"{self._awaited} ended a transaction that took longer than {IDLE_SECONDS} s, as a proposal can; what it "
            "was to store is computed again and stored step by step"
        )
        return write()

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        create = super().create_new_trial
        if self._in_transaction:
            return create(study_id, template_trial)
        known = {trial.number for trial in self.get_all_trials(study_id, deepcopy=False)}

        def stored() -> int | None:
            unknown = (each for each in self.get_all_trials(study_id, deepcopy=False) if each.number not in known)
            return next((id_of(each) for each in unknown if _is_of(each, template_trial)), None)

        return self.store(lambda: create(study_id, template_trial), stored)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        change = super().set_trial_state_values
        return self.store(
            lambda: change(trial_id, state, values), lambda: True if self.get_trial(trial_id).state is state else None
        )


def _is_of(trial: FrozenTrial, template: FrozenTrial | None) -> bool:
    """Whether a trial that nobody knows is the one that was to be created: others may enqueue trials meanwhile."""
    if template is None:
        return trial.state is TrialState.RUNNING and not trial.params
    return (trial.state, trial.params, trial.system_attrs) == (template.state, template.params, template.system_attrs)
