"""A model of a relational database: tables, transactions that are stored at once or not at all, and fences.

The storage above it is evomerge's own. Reading the model's tables takes a hundredth of SQLAlchemy's time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from simulation.doubles import world
from simulation.world import Process
from sqlalchemy.exc import OperationalError

from evomerge.leases.lease import holder_in, taken_over
from evomerge.storage.attributes import WRITER
from evomerge.storage.optuna_internals import backend_of
from evomerge.trial_store import trial_rows

Rows = dict[tuple[Any, ...], dict[str, Any]]
CONTENT = (
    trial_rows.PARAMS,
    trial_rows.VALUES,
    trial_rows.INTERMEDIATE,
    trial_rows.USER,
    trial_rows.SYSTEM,
    trial_rows.STUDY_USER,
    trial_rows.STUDY_SYSTEM,
)


def away() -> OperationalError:
    return OperationalError("", {}, Exception("connection refused"))


@dataclass
class Tables:
    """All that is stored. Rows are replaced, never changed."""

    studies: dict[int, str] = field(default_factory=dict)
    trials: dict[int, dict[str, Any]] = field(default_factory=dict)
    content: dict[str, Rows] = field(default_factory=lambda: {table.name: {} for table in CONTENT})
    leases: dict[int, str] = field(default_factory=dict)

    def copy(self) -> Tables:
        content = {name: dict(rows) for name, rows in self.content.items()}
        return Tables(dict(self.studies), dict(self.trials), content, dict(self.leases))


class Database:
    """The one database of a world.

    Attributes:
        dialect: "sqlite", which has no leases, or that of a server.
        writers: process by process, whose transactions were stored.
        writing: whose transaction is open, and has written: others who add trials wait for it.
    """

    def __init__(self, dialect: str) -> None:
        self.dialect = dialect
        self.tables = Tables()
        self.writers: list[int] = []
        self.writing: Process | None = None
        self._ids = 0

    def enqueue(self, study_id: int, fixed: Mapping[str, Any]) -> None:
        """A trial that somebody else adds."""
        if self.writing is not None and not self.writing.is_over:
            return
        number = sum(row["study_id"] == study_id for row in self.tables.trials.values())
        trial_id = self.next_id()
        times = {"datetime_start": None, "datetime_complete": None}
        self.tables.trials[trial_id] = {"study_id": study_id, "number": number, "state": TrialState.WAITING, **times}
        row = {"trial_id": trial_id, "key": "fixed_params", "value_json": json.dumps(dict(fixed))}
        self.tables.content["trial_system_attributes"][trial_id, "fixed_params"] = row

    def next_id(self) -> int:
        self._ids += 1
        return self._ids


class Connection:
    """An open transaction."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.dialect = SimpleNamespace(name=database.dialect)
        self._writes: list[Callable[[Tables], None]] = []
        self._view: Tables | None = None

    @property
    def tables(self) -> Tables:
        """What is stored, and what this transaction has written."""
        return self.database.tables if self._view is None else self._view

    def scalar(self, statement: Any) -> int | None:
        """The study of a trial, which is all that is ever asked for so."""
        row = self.tables.trials.get(statement.whereclause.right.value)
        return None if row is None else int(row["study_id"])

    def write(self, change: Callable[[Tables], None]) -> None:
        if self._view is None:
            self._view = self.database.tables.copy()
            self.database.writing = world().process
        change(self._view)
        self._writes.append(change)

    def commit(self, fence: Callable[[Tables], None]) -> None:
        if not self._writes:
            return

        def store() -> None:
            fence(self.database.tables)
            for change in self._writes:
                change(self.database.tables)
            self.database.writers.append(world().process.pid)

        world().call(store, away)


class Engine:
    """Connections to the database, as a SQLAlchemy engine gives them."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.dialect = SimpleNamespace(name=database.dialect)
        self.fence: Callable[[Tables], None] = lambda tables: None

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        world().call(lambda: None, away, writes=False)
        connection = Connection(self.database)
        try:
            yield connection
            connection.commit(self.fence)
        finally:
            self.database.writing = None

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        world().call(lambda: None, away, writes=False)
        yield Connection(self.database)

    def dispose(self) -> None:
        pass


class _Sessions:
    def remove(self) -> None:
        pass

    def configure(self, bind: object) -> None:
        pass


class Backend(RDBStorage):
    """Optuna's relational storage, as far as evomerge's storages ask it."""

    def __init__(self, database: Database) -> None:
        self.engine = Engine(database)  # type: ignore[assignment]
        self.scoped_session = _Sessions()  # type: ignore[assignment]
        self.heartbeat_interval = None
        self.grace_period = None
        self.failed_trial_callback = None
        self._database = database

    def _read(self, question: Callable[[Tables], Any]) -> Any:
        try:
            with self.engine.connect() as connection:
                return question(connection.tables)
        except OperationalError as error:
            raise StorageInternalError("away") from error

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        assert study_name is not None
        tables = self._database.tables

        def create() -> int:
            if study_name in tables.studies.values():
                raise DuplicatedStudyError(study_name)
            tables.studies[len(tables.studies) + 1] = study_name
            return len(tables.studies)

        try:
            return int(world().call(create, away))
        except OperationalError as error:
            raise StorageInternalError("away") from error

    def get_study_id_from_name(self, study_name: str) -> int:
        def find(tables: Tables) -> int:
            found = next((each for each, name in tables.studies.items() if name == study_name), None)
            if found is None:
                raise KeyError(study_name)
            return found

        return int(self._read(find))

    def get_study_name_from_id(self, study_id: int) -> str:
        return str(self._read(lambda tables: tables.studies[study_id]))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return [StudyDirection.MAXIMIZE]

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return dict(self._read(lambda tables: _attributes(tables, "study_user_attributes", study_id)))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return dict(self._read(lambda tables: _attributes(tables, "study_system_attributes", study_id)))

    def remove_session(self) -> None:
        pass


class ModelLease:
    """A `LeaseStore` in a row of the database, as `RelationalLease`."""

    def __init__(self, database: Database, study_id: int) -> None:
        self._database = database
        self._study_id = study_id

    def read(self) -> str | None:
        return self._database.tables.leases.get(self._study_id)

    def swap(self, old: str | None, new: str) -> bool:
        if self.read() != old:
            return False
        self._database.tables.leases[self._study_id] = new
        return True

    def guard(self, storage: Any, holder: str) -> None:
        def fence(tables: Tables) -> None:
            stored = tables.leases.get(self._study_id)
            if holder_in(stored) != holder:
                raise taken_over(stored)

        backend = backend_of(storage)
        assert isinstance(backend, Backend)
        backend.engine.fence = fence  # type: ignore[attr-defined]


class PendingRows(trial_rows.PendingRows):
    """Rows that a transaction stores in the model's tables."""

    def store(self, connection: Any) -> None:
        for table, rows in self._rows.items():
            connection.write(_upsert(table.name, dict(rows)))
        self._rows.clear()
        for trial_id, before, after, times in self._states:
            if connection.tables.trials[trial_id]["state"] is not before:
                raise StorageInternalError(f"another process has changed the state of the trial with id {trial_id}")
            connection.write(_update(trial_id, {"state": after, **times}))
        self._states.clear()


def add_trial(connection: Any, study_id: int, trial: FrozenTrial) -> int:
    trial_id = connection.database.next_id()
    row = {
        "study_id": study_id,
        "number": trial.number,
        "state": trial.state,
        "datetime_start": trial.datetime_start,
        "datetime_complete": trial.datetime_complete,
    }

    def insert(tables: Tables) -> None:
        tables.trials[trial_id] = row

    connection.write(insert)
    return int(trial_id)


def set_number(connection: Any, trial_id: int, number: int) -> None:
    connection.write(_update(trial_id, {"number": number}))


def read_trials(connection: Any, study_id: int, above: int = -1, below: int | None = None) -> list[FrozenTrial]:
    tables = connection.tables
    return [
        _frozen(tables, trial_id, row)
        for trial_id, row in sorted(tables.trials.items())
        if row["study_id"] == study_id and trial_id > above and (below is None or trial_id < below)
    ]


def _frozen(tables: Tables, trial_id: int, row: Mapping[str, Any]) -> FrozenTrial:
    params, distributions = {}, {}
    for each in _rows(tables, "trial_params", trial_id):
        distribution = _parsed(each["distribution_json"])
        distributions[each["param_name"]] = distribution
        params[each["param_name"]] = distribution.to_external_repr(each["param_value"])
    values = [each["value"] for each in _rows(tables, "trial_values", trial_id)]
    return FrozenTrial(
        number=row["number"],
        state=row["state"],
        value=None,
        values=values or None,
        datetime_start=row["datetime_start"],
        datetime_complete=row["datetime_complete"],
        params=params,
        distributions=distributions,
        user_attrs=_attributes(tables, "trial_user_attributes", trial_id),
        system_attrs=_attributes(tables, "trial_system_attributes", trial_id),
        intermediate_values={},
        trial_id=trial_id,
    )


def _rows(tables: Tables, name: str, owner: int) -> list[dict[str, Any]]:
    return [row for key, row in tables.content[name].items() if key[0] == owner]


def _attributes(tables: Tables, name: str, owner: int) -> dict[str, Any]:
    attributes = {row["key"]: json.loads(row["value_json"]) for row in _rows(tables, name, owner)}
    if name == "study_user_attributes" and owner in tables.leases:
        attributes[WRITER] = json.loads(tables.leases[owner])
    return attributes


def _upsert(name: str, rows: Rows) -> Callable[[Tables], None]:
    return lambda tables: tables.content[name].update(rows)


def _update(trial_id: int, changes: Mapping[str, Any]) -> Callable[[Tables], None]:
    def change(tables: Tables) -> None:
        tables.trials[trial_id] = {**tables.trials[trial_id], **changes}

    return change


@cache
def _parsed(text: str) -> BaseDistribution:
    return json_to_distribution(text)
