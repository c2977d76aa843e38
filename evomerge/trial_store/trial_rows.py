"""The rows of trials in Optuna's tables, read with one statement per table, and written with one per transaction.

Optuna reads each row as an object and writes each attribute with statements of its own. The rows here are the same.
"""

from __future__ import annotations

import gc
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from optuna.distributions import BaseDistribution, FloatDistribution, distribution_to_json, json_to_distribution
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Table, bindparam, insert, select, update
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.sql import Executable, Select

from evomerge.storage.optuna_internals import id_of, models

__all__ = [
    "STUDY_SYSTEM",
    "STUDY_USER",
    "SYSTEM",
    "TRIALS",
    "USER",
    "PendingRows",
    "add_trial",
    "now",
    "read_trials",
    "set_number",
    "to_local",
]

STUDIES: Table = models.StudyModel.__table__
TRIALS: Table = models.TrialModel.__table__
PARAMS: Table = models.TrialParamModel.__table__
VALUES: Table = models.TrialValueModel.__table__
INTERMEDIATE: Table = models.TrialIntermediateValueModel.__table__
USER: Table = models.TrialUserAttributeModel.__table__
SYSTEM: Table = models.TrialSystemAttributeModel.__table__
STUDY_USER: Table = models.StudyUserAttributeModel.__table__
STUDY_SYSTEM: Table = models.StudySystemAttributeModel.__table__

_Value = models.TrialValueModel
_Intermediate = models.TrialIntermediateValueModel

# Statements are made once: SQLAlchemy takes longer to make one than SQLite to execute it.
_LAST_ID: Final = 2**31 - 1  # that the columns hold
_WANTED = (
    (TRIALS.c.study_id == bindparam("study"))
    & (TRIALS.c.trial_id > bindparam("above"))
    & (TRIALS.c.trial_id <= bindparam("last"))
)
_FOUND = (
    select(TRIALS.c.trial_id, TRIALS.c.number, TRIALS.c.state, TRIALS.c.datetime_start, TRIALS.c.datetime_complete)
    .where(_WANTED)
    .order_by(TRIALS.c.trial_id)
)
_LOCK_STUDY = select(STUDIES.c.study_id).where(STUDIES.c.study_id == bindparam("study")).with_for_update()
_ADD_TRIAL = insert(TRIALS)
_CHANGE_STATE = update(TRIALS).where(
    (TRIALS.c.trial_id == bindparam("changed")) & (TRIALS.c.state == bindparam("before"))
)


def now(dialect: str) -> datetime:
    """The present time as the tables hold it, in UTC and without a zone; MySQL's columns hold whole seconds."""
    time = datetime.now(UTC).replace(tzinfo=None)
    return time.replace(microsecond=0) if dialect == "mysql" else time


def to_local(time: datetime | None) -> datetime | None:
    """A time of the tables as Optuna shows it: in the zone of this machine."""
    return None if time is None else time.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


def to_utc(time: datetime | None) -> datetime | None:
    """A time as Optuna shows it, for the tables."""
    return None if time is None else time.astimezone(UTC).replace(tzinfo=None)


def read_trials(connection: Connection, study_id: int, above: int = -1, below: int | None = None) -> list[FrozenTrial]:
    """The trials of a study, in ascending order of their ids.

    Args:
        above, below: only trials whose ids are between these.
    """
    wanted = {"study": study_id, "above": above, "last": _LAST_ID if below is None else below - 1}
    found = connection.execute(_FOUND, wanted).all()
    if not found:
        return []
    with _without_collection():
        values = _values(connection, wanted)
        params, distributions = _params(connection, wanted)
        user, system = (_attributes(connection, table, wanted) for table in (USER, SYSTEM))
        steps = _intermediate_values(connection, wanted)
        return [
            FrozenTrial(
                number=number,
                state=state,
                value=None,
                values=values.get(trial_id),
                datetime_start=to_local(start),
                datetime_complete=to_local(complete),
                params=params.get(trial_id, {}),
                distributions=distributions.get(trial_id, {}),
                user_attrs=user.get(trial_id, {}),
                system_attrs=system.get(trial_id, {}),
                intermediate_values=steps.get(trial_id, {}),
                trial_id=trial_id,
            )
            for trial_id, number, state, start, complete in found
        ]


@contextmanager
def _without_collection() -> Iterator[None]:
    """Make hundreds of thousands of objects without looking, again and again, for garbage among them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _select(table: Table, *columns: str) -> Select[Any]:
    chosen = select(table.c.trial_id, *(table.c[column] for column in columns))
    return chosen.join(TRIALS, table.c.trial_id == TRIALS.c.trial_id).where(_WANTED)


def _in_order(connection: Connection, table: Table, wanted: Mapping[str, int], *columns: str) -> list[Any]:
    """Rows as the driver gives them, with their own id last; in its order, which databases take longer to make."""
    (key,) = table.primary_key.columns
    cursor = connection.execute(_select(table, *columns, key.name), wanted).cursor
    assert cursor is not None  # a SELECT has one
    return sorted(cursor.fetchall(), key=itemgetter(-1))


def _params(
    connection: Connection, wanted: Mapping[str, int]
) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, BaseDistribution]]]:
    params: dict[int, dict[str, Any]] = defaultdict(dict)
    distributions: dict[int, dict[str, BaseDistribution]] = defaultdict(dict)
    known: dict[str, BaseDistribution] = {}
    columns = ("param_name", "param_value", "distribution_json")
    for trial_id, rows in groupby(_in_order(connection, PARAMS, wanted, *columns), key=itemgetter(0)):
        values, kinds = params[trial_id], distributions[trial_id]
        for _, name, value, text, _ in rows:
            distribution = known.get(text)
            if distribution is None:
                distribution = known[text] = json_to_distribution(text)
            kinds[name] = distribution
            is_number = type(distribution) is FloatDistribution  # is itself in any representation
            values[name] = value if is_number else distribution.to_external_repr(value)
    return params, distributions


def _attributes(connection: Connection, table: Table, wanted: Mapping[str, int]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = defaultdict(dict)
    rows = _in_order(connection, table, wanted, "key", "value_json")
    contents = json.loads(f"[{','.join([text for _, _, text, _ in rows])}]")  # a call for each takes twice as long
    for (trial_id, key, _, _), content in zip(rows, contents, strict=True):
        found[trial_id][key] = content
    return found


def _values(connection: Connection, wanted: Mapping[str, int]) -> dict[int, list[float]]:
    found: dict[int, list[float]] = defaultdict(list)
    columns = ("value", "value_type", "objective")
    in_order = _select(VALUES, *columns).order_by(VALUES.c.objective)
    for trial_id, value, kind, _ in connection.execute(in_order, wanted):
        found[trial_id].append(_Value.stored_repr_to_value(value, kind))
    return found


def _intermediate_values(connection: Connection, wanted: Mapping[str, int]) -> dict[int, dict[int, float]]:
    found: dict[int, dict[int, float]] = defaultdict(dict)
    columns = ("step", "intermediate_value", "intermediate_value_type", "trial_intermediate_value_id")
    in_order = _select(INTERMEDIATE, *columns).order_by(INTERMEDIATE.c.trial_intermediate_value_id)
    for trial_id, step, value, kind, _ in connection.execute(in_order, wanted):
        found[trial_id][step] = _Intermediate.stored_repr_to_intermediate_value(value, kind)
    return found


def add_trial(connection: Connection, study_id: int, trial: FrozenTrial) -> int:
    """Insert the row of a new trial, without its content, and return its id."""
    if connection.dialect.name != "sqlite":  # others who add a trial wait until this transaction ends, as in SQLite
        connection.execute(_LOCK_STUDY, {"study": study_id})
    row = {
        "study_id": study_id,
        "number": trial.number,
        "state": trial.state,
        "datetime_start": to_utc(trial.datetime_start),
        "datetime_complete": to_utc(trial.datetime_complete),
    }
    inserted = connection.execute(_ADD_TRIAL, row).inserted_primary_key
    assert inserted is not None  # the table has a primary key
    return int(inserted[0])


def set_number(connection: Connection, trial_id: int, number: int) -> None:
    """Another number for a trial, since somebody else has added trials meanwhile."""
    connection.execute(update(TRIALS).where(TRIALS.c.trial_id == trial_id).values(number=number))


@dataclass
class PendingRows:
    """The writes to trials and studies, until a transaction stores them with one statement per table.

    Args:
        dialect: of the database.
    """

    dialect: str
    _rows: dict[Table, dict[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    _states: list[tuple[int, TrialState, TrialState, Mapping[str, datetime]]] = field(default_factory=list)

    def attribute(self, table: Table, owner: int, key: str, value: Any) -> str:
        """An attribute of a trial or a study. Returns its text."""
        text = json.dumps(value)
        self._put(table, {_UNIQUE[table][0]: owner, "key": key, "value_json": text})
        return text

    def param(self, trial_id: int, name: str, value: float, distribution: BaseDistribution) -> None:
        """A parameter in Optuna's internal representation."""
        text = distribution_to_json(distribution)
        row = {"trial_id": trial_id, "param_name": name, "param_value": value, "distribution_json": text}
        self._put(PARAMS, row)

    def value(self, trial_id: int, objective: int, value: float) -> None:
        """The value of an objective."""
        stored, kind = _Value.value_to_stored_repr(value)
        self._put(VALUES, {"trial_id": trial_id, "objective": objective, "value": stored, "value_type": kind})

    def intermediate(self, trial_id: int, step: int, value: float) -> None:
        """An intermediate value."""
        stored, kind = _Intermediate.intermediate_value_to_stored_repr(value)
        names = {"intermediate_value": stored, "intermediate_value_type": kind}
        self._put(INTERMEDIATE, {"trial_id": trial_id, "step": step, **names})

    def state(self, trial_id: int, before: TrialState, after: TrialState, times: Mapping[str, datetime]) -> None:
        """A change of state, with the times that go with it."""
        self._states.append((trial_id, before, after, times))

    def content(self, trial: FrozenTrial) -> None:
        """All parts of a new trial."""
        trial_id = id_of(trial)
        for objective, value in enumerate(trial.values or ()):
            self.value(trial_id, objective, value)
        for name, value in trial.params.items():
            distribution = trial.distributions[name]
            self.param(trial_id, name, distribution.to_internal_repr(value), distribution)
        for table, attrs in ((USER, trial.user_attrs), (SYSTEM, trial.system_attrs)):
            for key, value in attrs.items():
                self.attribute(table, trial_id, key, value)
        for step, value in trial.intermediate_values.items():
            self.intermediate(trial_id, step, value)

    def store(self, connection: Connection) -> None:
        """Write everything.

        Raises:
            StorageInternalError: the state of a trial is not what this process had seen.
        """
        for table, rows in self._rows.items():
            connection.execute(_upsert(self.dialect, table), list(rows.values()))
        self._rows.clear()
        for trial_id, before, after, times in self._states:
            change = {"changed": trial_id, "before": before, "state": after, **times}
            if connection.execute(_CHANGE_STATE, change).rowcount != 1:
                raise StorageInternalError(f"another process has changed the state of the trial with id {trial_id}")
        self._states.clear()

    def _put(self, table: Table, row: dict[str, Any]) -> None:
        key = tuple(row[column] for column in _UNIQUE[table])
        self._rows.setdefault(table, {})[key] = row


# Table -> the columns that tell its rows apart.
_UNIQUE: Mapping[Table, tuple[str, str]] = {
    PARAMS: ("trial_id", "param_name"),
    VALUES: ("trial_id", "objective"),
    INTERMEDIATE: ("trial_id", "step"),
    USER: ("trial_id", "key"),
    SYSTEM: ("trial_id", "key"),
    STUDY_USER: ("study_id", "key"),
    STUDY_SYSTEM: ("study_id", "key"),
}


@cache
def _upsert(dialect: str, table: Table) -> Executable:
    unique = _UNIQUE[table]
    changed = [each.name for each in table.columns if not each.primary_key and each.name not in unique]
    if dialect == "mysql":
        into = mysql.insert(table)
        return into.on_duplicate_key_update({name: into.inserted[name] for name in changed})
    other = postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
    return other.on_conflict_do_update(index_elements=unique, set_={name: other.excluded[name] for name in changed})
