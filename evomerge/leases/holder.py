"""The holder of a study as others see it, for reports: whoever wants to write takes the hold itself, see `lock`."""

from __future__ import annotations

import fcntl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from evomerge.clock import SYSTEM_CLOCK, Clock
from evomerge.leases.hold_files import lease_file, lock_file
from evomerge.leases.holding_process import has_ended, is_running, on_same_kernel
from evomerge.leases.lease import LeaseTimes, holder_in, record_in
from evomerge.storage.url import SQLITE, local_file, resolve_url, scheme_of

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

__all__ = ["Alive", "Holder", "holder_of"]

Alive = Literal["yes", "no", "unknown"]

_SILENCE: Final = LeaseTimes().silence
_SKEW: Final = 900.0  # seconds by which two wall clocks may differ


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The controller that holds a study, or that ended without giving it back.

    Attributes:
        alive: whether its process runs. On other machines only its signs of life tell: "yes" after a recent one, "no"
            after none for so long that clocks that differ are no excuse, "unknown" in between.
        process: its number.
        since: when it took the study, in ISO format.
        refreshed: seconds since its latest sign of life, by two wall clocks; None where a lock makes signs needless.
    """

    alive: Alive
    process: int | None
    host: str | None
    since: str | None
    refreshed: float | None


def holder_of(
    url: str,
    name: str,
    *,
    storage: BaseStorage | None = None,
    lease: str | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> Holder | None:
    """The holder of a study; None where nobody holds it. Writes nothing, and of a file opens only small ones beside it.

    Args:
        url: storage URL.
        name: name of the study.
        storage: the open storage, where there is one already.
        lease: the text of the lease of a study on a server, where it has been read already.
    """
    url = resolve_url(url)
    file = local_file(url)
    if file is None:
        text = _text_on_server(url, name, storage) if lease is None else lease
        return _holder(record_in(text), None, clock) if holder_in(text) is not None else None
    file = file.resolve()
    if record_in(_read(lock_file(file))).get("study", name) != name:  # one file has one writer, of one of its studies
        return None
    text = None if scheme_of(url) in SQLITE else _read(lease_file(file)).strip() or None
    if holder_in(text) is not None:
        return _holder(record_in(text), lock_file(file), clock)
    record = record_in(_read(lock_file(file)))
    if text is not None or not record:  # a journal whose lease was given back, or a file that nobody has locked
        return None
    return _holder(record | {"locked": True, "refreshed": None}, lock_file(file), clock)


def _text_on_server(url: str, name: str, storage: BaseStorage | None) -> str | None:
    # Optuna takes as long to load as all else that a look at a study needs.
    from optuna.storages import JournalStorage, RDBStorage

    from evomerge.leases.journal_leases import RedisLease
    from evomerge.leases.relational_lease import RelationalLease
    from evomerge.storage.journals import RedisJournal
    from evomerge.storage.opening import open_storage, release
    from evomerge.storage.optuna_internals import backend_of, journal_of

    opened = open_storage(url) if storage is None else storage
    try:
        backend = backend_of(opened)
        if isinstance(backend, RDBStorage):
            try:
                return RelationalLease(backend, opened.get_study_id_from_name(name)).read()
            except KeyError:
                return None
        assert isinstance(backend, JournalStorage)
        journal = journal_of(backend)
        assert isinstance(journal, RedisJournal)  # journals in files are looked at as files
        return RedisLease(journal.client, name).read()
    finally:
        if storage is None:
            release(opened)


def _holder(record: Mapping[str, Any], lock: Path | None, clock: Clock) -> Holder:
    expires, refreshed = record.get("expires"), record.get("refreshed")
    if refreshed is None and isinstance(expires, (int, float)):  # of an earlier release
        refreshed = expires - _SILENCE
    age = clock.time() - refreshed if isinstance(refreshed, (int, float)) else None
    process, host, since = record.get("pid"), record.get("host"), record.get("since")
    return Holder(
        alive=_alive(record, lock, age),
        process=process if isinstance(process, int) else None,
        host=None if host is None else str(host),
        since=None if since is None else str(since),
        refreshed=age,
    )


def _alive(record: Mapping[str, Any], lock: Path | None, age: float | None) -> Alive:
    if is_running(record):
        return "yes"
    if has_ended(record):
        return "no"
    if lock is not None and record.get("locked") and on_same_kernel(record):  # in another container
        return _is_locked(lock)
    if age is None or age < -_SILENCE or _SILENCE < age <= _SILENCE + _SKEW:
        return "unknown"
    return "yes" if age <= _SILENCE else "no"


def _is_locked(lock: Path) -> Alive:
    """Whether somebody has the lock, by taking a shared one for an instant."""
    try:
        with lock.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return "no"
    except BlockingIOError:
        return "yes"
    except OSError:
        return "unknown"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
