"""One controller at a time.

A SQLite file is held by an advisory lock of the operating system, on a file beside it: the kernel drops it when the
process ends, however it ends, so that the same command can be run again at once. A study on a server, and a journal
file, is held by a lease, see `evomerge.leases.lease`; a journal on a local disk by a lock as well, so that it is free
at once when its holder was killed. On network file systems locks are not to be trusted: they may be missing, or count
on one machine only.
"""

from __future__ import annotations

import errno
import fcntl
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TextIO

from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.study import StudyDirection

from evomerge.clock import SYSTEM_CLOCK, Clock
from evomerge.errors import EvomergeError, InvalidInput, StudyHeld
from evomerge.leases.hold_files import lock_file
from evomerge.leases.holding_process import described, this_process
from evomerge.leases.journal_leases import FileLease, RedisLease
from evomerge.leases.lease import Lease, LeaseStore, LeaseTimes, record_in
from evomerge.leases.relational_lease import RelationalLease
from evomerge.messages import duration
from evomerge.storage.journals import RedisJournal
from evomerge.storage.opening import network_filesystem, open_storage, release, with_retries
from evomerge.storage.optuna_internals import backend_of, journal_of
from evomerge.storage.patience import IMPATIENT, StoragePatience
from evomerge.storage.url import SQLITE, local_file, resolve_url, scheme_of

__all__ = ["Hold", "hold", "keep", "lock_file"]

_NO_LOCKS: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_LOOKS: Final = 5  # at a lock that is taken: `holder_of` takes it for an instant
_LOOK_SECONDS: Final = 0.1
_JOIN_SECONDS: Final = 3.0  # for the thread, which may wait for a storage that does not answer


class Hold:
    """The right to write to a study.

    Attributes:
        held_since: when it was taken, in ISO format.
    """

    def __init__(self, held_since: str, lease: Lease | None = None, patience: StoragePatience = IMPATIENT) -> None:
        self.held_since = held_since
        self._lease = lease
        self._patience = patience

    def check(self) -> None:
        """Return where this process surely holds the study, waiting for a storage that does not answer.

        Raises:
            StudyHeld: another controller has taken the study over, because this one was silent for too long.
            StorageAway: nobody else is known to hold it, but the storage does not answer, and somebody might.
        """
        if self._lease is None:
            return
        self._patience.retry(self._lease.confirm, "the lease of the study")

    def guard(self, storage: BaseStorage) -> None:
        """Have a storage refuse what is written through it once another controller has taken the study over.

        `check` alone would let a write through of a process that was stopped right after it, and continued later.
        """
        if self._lease is not None:
            self._lease.guard(storage)


@contextmanager
def hold(
    url: str,
    name: str,
    *,
    directions: Sequence[str] = ("maximize",),
    times: LeaseTimes | None = None,
    patience: StoragePatience = IMPATIENT,
) -> Iterator[Hold]:
    """Hold a study for writing.

    One SQLite or journal file has one writer, whatever the number of studies in it. On a server, each study has one; in
    a database the study is created if it does not exist yet, to have something to hold.

    Args:
        url: storage URL.
        name: name of the study.
        directions: of the study, should it have to be created.
        times: other times of a lease than the default ones.
        patience: with which the storage is waited for where the lease has to be confirmed.

    Raises:
        StudyHeld: another controller holds it; the message names it.
        InvalidInput: a SQLite file on a file system without locks.
    """
    url = resolve_url(url)
    with ExitStack() as stack:
        file = local_file(url)
        if file is None:
            storage = open_storage(url)
            stack.callback(release, storage)
            store, what, locked = _store(storage, name, directions), f"the study {name!r}", False
        else:
            file = file.resolve()
            locked = _is_lockable(file, url) and stack.enter_context(_file_lock(file, name, url))
            if scheme_of(url) in SQLITE:
                yield Hold(_now())
                return
            store, what = FileLease(file), str(file)
        lease = Lease(store, what=what, times=times, locked=locked)
        with keep(lease, patience=patience) as held:
            yield held


@contextmanager
def keep(lease: Lease, *, patience: StoragePatience = IMPATIENT, clock: Clock = SYSTEM_CLOCK) -> Iterator[Hold]:
    """Take a lease, and refresh it in a thread until the block ends.

    Raises:
        StudyHeld: another controller has it.
    """
    said = ""
    while (wait := with_retries(lease.attempt, clock=clock)) is not None:
        if lease.awaited != said:
            said = lease.awaited
            patience.say(f"waiting: {said}; it has {duration(lease.times.silence)} to give a sign of life")
        patience.check()
        clock.sleep(wait)
    stop = threading.Event()
    thread = threading.Thread(target=_refresh, args=(lease, stop), name="evomerge-lease", daemon=True)
    thread.start()
    try:
        yield Hold(lease.since, lease, patience)
    except Exception as error:
        _blame_takeover(lease, error)
        raise
    finally:
        stop.set()
        thread.join(_JOIN_SECONDS)


def _blame_takeover(lease: Lease, error: Exception) -> None:
    """Say that the study was taken over, where that can be why an error ended the block: trials had changed under it.

    Raises:
        StudyHeld: it was.
    """
    if isinstance(error, EvomergeError):
        return
    try:
        lease.confirm()
    except StudyHeld as held:
        raise held from error
    except Exception:  # nobody knows
        return


def _refresh(lease: Lease, stop: threading.Event) -> None:
    """Refresh a lease until told to stop, and give it back. `Lease.confirm` says what came of the refreshes."""
    while not stop.wait(lease.times.refresh):
        with suppress(BaseException):
            lease.refresh()
    with suppress(BaseException):  # the others then wait for silence
        lease.release()


def _store(storage: BaseStorage, name: str, directions: Sequence[str]) -> LeaseStore:
    backend = backend_of(storage)
    if isinstance(backend, RDBStorage):
        return RelationalLease(backend, with_retries(lambda: _study_id(storage, name, directions)))
    assert isinstance(backend, JournalStorage)
    journal = journal_of(backend)
    assert isinstance(journal, RedisJournal)  # journals in files are held as files
    return RedisLease(journal.client, name)


def _study_id(storage: BaseStorage, name: str, directions: Sequence[str]) -> int:
    try:
        return storage.get_study_id_from_name(name)
    except KeyError:
        pass
    try:
        return storage.create_new_study([StudyDirection[direction.upper()] for direction in directions], name)
    except DuplicatedStudyError:
        return storage.get_study_id_from_name(name)


def _is_lockable(file: Path, url: str) -> bool:
    return scheme_of(url) in SQLITE or not network_filesystem(file)


@contextmanager
def _file_lock(file: Path, name: str, url: str) -> Iterator[bool]:
    """Lock a file until the block ends. False for a journal where the file system has no locks: it has its lease."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        opened = lock_file(file).open("a+", encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"cannot lock {file}: {error}") from error
    with opened as lock:
        if not _lock(lock, file, url):
            yield False
            return
        lock.truncate(0)
        lock.write(json.dumps({**asdict(this_process()), "since": _now(), "study": name}) + "\n")
        lock.flush()
        try:
            yield True
        finally:
            # The file stays: whoever deleted it could delete it from under one who has just locked it.
            lock.truncate(0)


def _lock(lock: TextIO, file: Path, url: str) -> bool:
    for look in range(_LOOKS):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError as error:
            if look == _LOOKS - 1:
                lock.seek(0)
                holder = described(record_in(lock.read()))
                raise StudyHeld(f"{file} is held by {holder}; stop it, or wait until it ends") from error
            SYSTEM_CLOCK.sleep(_LOOK_SECONDS)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise InvalidInput(f"cannot lock {file}: {error.strerror}") from error
            if scheme_of(url) in SQLITE:
                raise InvalidInput(
                    f"{file} is on a file system without locks ({error.strerror}), which SQLite needs; use a local "
                    f"disk, a journal (journal:///{file.with_suffix('.journal')}) or a database server"
                ) from error
            return False
    return False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
