"""Journals that refuse the entries of a former holder, in files and in Redis, and their leases."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock, JournalRedisBackend

from evomerge.storage.lease import holder_in, taken_over
from evomerge.storage.optuna_internals import journal_of
from evomerge.whole_files import flush_folder, write_whole

__all__ = ["FileJournal", "FileLease", "RedisJournal", "RedisLease", "lease_file"]

_RECORD_BYTES: Final = 1024  # of a lease file, so that a refresh is one write of a fixed length

# Appends an entry unless another one has the lease. The client may send it twice, where an answer was lost.
_APPEND: Final = """
if ARGV[3] ~= '' then
  if redis.call('hget', KEYS[1], 'id') ~= ARGV[3] then return 0 end
  if redis.call('hget', KEYS[1], 'entry') == ARGV[4] then return 1 end
  redis.call('hset', KEYS[1], 'entry', ARGV[4])
end
redis.call('setnx', ARGV[1] .. ':log_number', -1)
local i = redis.call('incr', ARGV[1] .. ':log_number')
redis.call('set', string.format('%s:log:%d', ARGV[1], i), ARGV[2])
return 1
"""

_SWAP: Final = """
if (redis.call('hget', KEYS[1], 'record') or '') ~= ARGV[1] then return 0 end
redis.call('hset', KEYS[1], 'record', ARGV[2], 'id', ARGV[3])
return 1
"""


def lease_file(journal: Path) -> Path:
    """The file beside a journal that holds its lease."""
    return journal.with_name(f"{journal.name}.lease")


class FileJournal(JournalFileBackend):
    """A journal file. An entry that cannot be written whole leaves nothing behind.

    Attributes:
        fence: called before each entry under the journal's lock; raises where the entry may not be written.
    """

    fence: Callable[[], None] | None = None

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        entries = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in logs).encode()
        path = Path(self._file_path)
        with _locked(path), path.open("ab", buffering=0) as file:
            # Only now: whoever takes the lease replaces the journal by a copy, so that all that is written to this
            # file after another one was found to be the holder, or after a stop of any length, is written to nowhere.
            if self.fence is not None:
                self.fence()
            size = os.fstat(file.fileno()).st_size
            try:
                _write_all(file.fileno(), entries)
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    os.ftruncate(file.fileno(), size)
                raise
            if not _is_at(file.fileno(), path):
                if self.fence is not None:
                    self.fence()
                raise StorageInternalError(f"the journal {path} was replaced while an entry was written")


class FileLease:
    """A `LeaseStore` in a file beside a journal file, changed under the journal's lock.

    Its holder writes to the file in place; another one that takes it replaces the file, and the journal by a copy. So
    the former holder's writes go to files without a name, however late they come.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal.resolve()
        self._path = lease_file(self._journal)

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
            write_whole(self._path, content)
            if holder_in(old) is not None and self._journal.exists():
                _replace_by_copy(self._journal)
            return True

    def guard(self, storage: BaseStorage, holder: str) -> None:
        assert isinstance(storage, JournalStorage)  # the lease is that of a journal
        journal = journal_of(storage)
        assert isinstance(journal, FileJournal)

        def fence() -> None:
            stored = self.read()
            if holder_in(stored) != holder:
                raise taken_over(stored)

        journal.fence = fence


class RedisJournal(JournalRedisBackend):
    """A journal in Redis, without the snapshots: loading such a pickle would run the code of whoever can write there.

    Attributes:
        fence: key of a lease and id of its holder, without whom no entry is appended.
    """

    fence: tuple[str, str] | None = None

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        key, holder = self.fence or (self.lease_key(""), "")
        for entry in logs:
            arguments = (self._prefix, json.dumps(entry), holder, uuid.uuid4().hex)
            if not self._redis.eval(_APPEND, 1, key, *arguments):
                raise taken_over(self.read_lease(key))

    def lease_key(self, study: str) -> str:
        """The key of the lease of a study."""
        return f"{self._prefix}:writer:{study}"

    def read_lease(self, key: str) -> str | None:
        """The text of a lease."""
        text = self._redis.hget(key, "record")
        return text.decode() if isinstance(text, bytes) else text

    def swap_lease(self, key: str, old: str | None, new: str) -> bool:
        """Replace the text of a lease, where it is the old one."""
        return bool(self._redis.eval(_SWAP, 1, key, old or "", new, holder_in(new) or ""))

    def load_snapshot(self) -> bytes | None:
        return None

    def save_snapshot(self, snapshot: bytes) -> None:
        return None


class RedisLease:
    """A `LeaseStore` in a hash beside a journal in Redis."""

    def __init__(self, journal: RedisJournal, study: str) -> None:
        self._journal = journal
        self._key = journal.lease_key(study)

    def read(self) -> str | None:
        return self._journal.read_lease(self._key)

    def swap(self, old: str | None, new: str) -> bool:
        return self._journal.swap_lease(self._key, old, new)

    def guard(self, storage: BaseStorage, holder: str) -> None:
        assert isinstance(storage, JournalStorage)  # the lease is that of a journal
        journal = journal_of(storage)
        assert isinstance(journal, RedisJournal)
        journal.fence = (self._key, holder)


@contextmanager
def _locked(journal: Path) -> Iterator[None]:
    """The lock that Optuna's journal backend takes for each append."""
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


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _replace_by_copy(path: Path) -> None:
    aside = path.with_name(f".{path.name}.copy-{uuid.uuid4().hex[:8]}")
    try:
        shutil.copy2(path, aside)
        with aside.open("rb") as copy:
            os.fsync(copy.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)
