"""The leases of journals, and the fences that keep a former holder's entries out: in a file, and in Redis."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol

from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileSymlinkLock

from evomerge.leases.hold_files import lease_file
from evomerge.leases.lease import holder_in, taken_over
from evomerge.storage.journals import FileJournal, RedisJournal
from evomerge.storage.optuna_internals import journal_of
from evomerge.whole_files import discard_asides, replace_where

__all__ = ["FileLease", "RedisLease", "lease_file"]

_RECORD_BYTES: Final = 1024  # of a lease file, so that a refresh is one write of a fixed length

_SWAP: Final = """
if (redis.call('hget', KEYS[1], 'record') or '') ~= ARGV[1] then return 0 end
redis.call('hset', KEYS[1], 'record', ARGV[2], 'id', ARGV[3])
return 1
"""


class FileLease:
    """A `LeaseStore` in a file beside a journal file, changed under the journal's lock.

    Its holder writes to the file in place; another one that takes it replaces the file, and then the journal by a copy.
    So the former holder's writes go to files without a name, however late they come.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal.resolve()
        self._path = lease_file(self._journal)
        self._is_taken_away = False  # from a holder who may still be writing

    def read(self) -> str | None:
        try:
            return self._path.read_text(encoding="utf-8").strip() or None
        except FileNotFoundError:
            return None

    def swap(self, old: str | None, new: str) -> bool:
        content = f"{new.ljust(_RECORD_BYTES - 1)}\n".encode()
        with _locked(self._journal), _opened(self._path) as descriptor:
            if _text(descriptor) != old:
                return False
            if descriptor is not None and holder_in(new) in (None, holder_in(old)):
                os.pwrite(descriptor, content, 0)
                os.ftruncate(descriptor, len(content))
                os.fsync(descriptor)
                return True
            self._is_taken_away = self._is_taken_away or holder_in(old) is not None
            taken = replace_where(self._path, lambda aside: aside.write_bytes(content), lambda: self.read() == old)
            if taken:
                discard_asides(self._path)
            return taken

    def guard(self, storage: BaseStorage, holder: str) -> None:
        assert isinstance(storage, JournalStorage)  # the lease is that of a journal
        journal = journal_of(storage)
        assert isinstance(journal, FileJournal)

        def fence() -> None:
            stored = self.read()
            if holder_in(stored) != holder:
                raise taken_over(stored)

        journal.fence = fence
        if self._is_taken_away:
            journal.leave_former()
            self._is_taken_away = False


class RedisClient(Protocol):
    """The commands of a Redis client that leases use."""

    def hget(self, name: str, key: str) -> Any: ...

    def eval(self, script: str, numkeys: int, *keys_and_args: str) -> Any: ...


class RedisLease:
    """A `LeaseStore` in a hash beside a journal in Redis."""

    def __init__(self, client: RedisClient, study: str) -> None:
        self._client = client
        self._key = f":writer:{study}"

    def read(self) -> str | None:
        text = self._client.hget(self._key, "record")
        return text.decode() if isinstance(text, bytes) else None

    def swap(self, old: str | None, new: str) -> bool:
        return bool(self._client.eval(_SWAP, 1, self._key, old or "", new, holder_in(new) or ""))

    def guard(self, storage: BaseStorage, holder: str) -> None:
        assert isinstance(storage, JournalStorage)  # the lease is that of a journal
        journal = journal_of(storage)
        assert isinstance(journal, RedisJournal)
        journal.fence = (self._key, holder, lambda: taken_over(self.read()))


@contextmanager
def _locked(journal: Path) -> Iterator[None]:
    """The lock that Optuna's journal backend takes for each append."""
    if not journal.exists():  # the lock is a link to it, and one that dangles is never recognised as that of a crash
        journal.parent.mkdir(parents=True, exist_ok=True)
        journal.touch()
    lock = JournalFileSymlinkLock(str(journal))
    lock.acquire()
    try:
        yield
    finally:
        with suppress(RuntimeError):  # we were slow, and somebody has broken the lock
            lock.release()


@contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _text(descriptor: int | None) -> str | None:
    if descriptor is None:
        return None
    return os.pread(descriptor, 1 << 16, 0).decode(errors="replace").strip() or None
