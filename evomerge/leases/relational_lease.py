"""The lease of a study on a database server: a user attribute of the study, and the fence that each commit passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy import Connection, Engine, Select, event, insert, select, text, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from evomerge.leases.lease import holder_in, taken_over
from evomerge.storage.attributes import WRITER
from evomerge.storage.optuna_internals import STUDY_ATTRIBUTES, backend_of
from evomerge.storage.patient_storage import IDLE_SECONDS

__all__ = ["RelationalLease"]

# A holder that was stopped in the middle of a commit keeps the lease's row locked. How long one waits for the row, in
# seconds; the server ends the stopped one's transaction after IDLE_SECONDS.
_ROW_WAIT: Final = 10
_ROW_LOCKED: Final = ("55P03", 1205)  # of a row that stayed locked: PostgreSQL's code, and MySQL's

_ROW_WAITS: Final[Mapping[str, str]] = {
    "postgresql": f"SET lock_timeout = '{_ROW_WAIT}s'",
    "mysql": f"SET SESSION innodb_lock_wait_timeout = {_ROW_WAIT}",
}
_IDLE_LIMITS: Final[Mapping[str, str]] = {
    "postgresql": f"SET idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'",
    "mysql": f"SET SESSION wait_timeout = {IDLE_SECONDS}",
}
_WROTE: Final = "evomerge wrote"  # key of a connection's notes


class RelationalLease:
    """A `LeaseStore` in the attribute `evomerge:writer` of a study."""

    def __init__(self, storage: RDBStorage, study_id: int) -> None:
        self._engine = storage.engine
        self._study_id = study_id

    def read(self) -> str | None:
        try:
            with self._engine.connect() as connection:
                return connection.execute(self._select()).scalar_one_or_none()
        except SQLAlchemyError as error:
            raise StorageInternalError("the lease could not be read") from error

    def swap(self, old: str | None, new: str) -> bool:
        try:
            # Without a transaction, in whose middle this process could be stopped with the row locked.
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                limit = _ROW_WAITS.get(connection.dialect.name)
                if limit is not None:
                    connection.execute(text(limit))
                return self._insert(connection, new) if old is None else self._update(connection, old, new)
        except IntegrityError:
            return False  # another one has inserted it
        except SQLAlchemyError as error:
            if _is_row_locked(error):
                return False
            raise StorageInternalError("the lease could not be stored") from error

    def guard(self, storage: BaseStorage, holder: str) -> None:
        backend = backend_of(storage)
        assert isinstance(backend, RDBStorage)  # the study of this lease is in such a storage
        _end_idle_transactions(backend.engine)
        _fence_commits(backend.engine, self._select().with_for_update(read=True), holder)

    def _select(self) -> Select[tuple[Any]]:
        return select(STUDY_ATTRIBUTES.c.value_json).where(
            STUDY_ATTRIBUTES.c.study_id == self._study_id, STUDY_ATTRIBUTES.c.key == WRITER
        )

    def _insert(self, connection: Connection, new: str) -> bool:
        row = {"study_id": self._study_id, "key": WRITER, "value_json": new}
        connection.execute(insert(STUDY_ATTRIBUTES).values(row))
        return True

    def _update(self, connection: Connection, old: str, new: str) -> bool:
        changed = connection.execute(
            update(STUDY_ATTRIBUTES)
            .where(
                STUDY_ATTRIBUTES.c.study_id == self._study_id,
                STUDY_ATTRIBUTES.c.key == WRITER,
                STUDY_ATTRIBUTES.c.value_json == old,
            )
            .values(value_json=new)
        )
        return changed.rowcount == 1


def _fence_commits(engine: Engine, select_lease: Select[tuple[Any]], holder: str) -> None:
    """Look at the lease as the last step of each transaction that has written.

    Its row stays locked until the commit, so that nobody takes the lease in between; as the last step, since the
    holder's own refreshes wait for the row, too.
    """

    def note(connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
        if not statement.lstrip()[:6].upper().startswith("SELECT"):
            connection.info[_WROTE] = True

    def check(connection: Connection) -> None:
        if not connection.info.pop(_WROTE, False):
            return
        stored = connection.execute(select_lease).scalar_one_or_none()
        if holder_in(stored) != holder:
            raise taken_over(stored)

    def forget(connection: Connection) -> None:
        connection.info.pop(_WROTE, None)

    event.listen(engine, "before_cursor_execute", note)
    event.listen(engine, "commit", check)
    event.listen(engine, "rollback", forget)


def _is_row_locked(error: SQLAlchemyError) -> bool:
    original = getattr(error, "orig", None)
    codes = (getattr(original, "sqlstate", None), *getattr(original, "args", ())[:1])
    return any(code in _ROW_LOCKED for code in codes)


def _end_idle_transactions(engine: Engine) -> None:
    """Have the server end a transaction whose process was stopped: its locks would keep everybody else waiting."""
    limit = _IDLE_LIMITS.get(engine.dialect.name)
    if limit is None:
        return

    def ask(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(limit)
        cursor.close()
        connection.commit()

    event.listen(engine, "connect", ask)
    engine.dispose()  # connections that are open already were not asked
