"""Journals in a file or in Redis that refuse the entries of a former holder of their study."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from optuna.exceptions import StorageInternalError
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock, JournalRedisBackend

__all__ = ["FileJournal", "RedisJournal"]

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


class FileJournal(JournalFileBackend):
    """A journal file. An entry that cannot be written whole leaves nothing behind.

    Attributes:
        fence: called before each entry under the journal's lock; raises where the entry may not be written.
    """

    def __init__(self, file_path: str) -> None:
        self._append_lock = JournalFileSymlinkLock(file_path)
        super().__init__(file_path, self._append_lock)
        self.fence: Callable[[], None] = lambda: None

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        entries = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in logs).encode()
        self._append_lock.acquire()
        try:
            self._append(Path(self._file_path), entries)
        finally:
            with suppress(RuntimeError):  # we were slow, and somebody has broken the lock
                self._append_lock.release()

    def _append(self, path: Path, entries: bytes) -> None:
        with path.open("ab", buffering=0) as file:
            # After the file was opened: who takes the lease replaces the journal by a copy, so that what is written
            # to this file after that, however long this process was stopped, is not in the journal.
            self.fence()
            size = os.fstat(file.fileno()).st_size
            try:
                rest = memoryview(entries)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    os.ftruncate(file.fileno(), size)
                raise
            if not _is_at(file.fileno(), path):
                self.fence()
                raise StorageInternalError(f"the journal {path} was replaced while an entry was written")


class RedisJournal(JournalRedisBackend):
    """A journal in Redis, without the snapshots: loading such a pickle would run the code of whoever can write there.

    Attributes:
        fence: key of a lease, the id of its holder, without whom no entry is appended, and the error for others.
    """

    fence: tuple[str, str, Callable[[], Exception]] | None = None

    @property
    def client(self) -> Any:
        """The connection to the server."""
        return self._redis

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        key, holder, error = self.fence or ("", "", StorageInternalError)
        for entry in logs:
            arguments = (self._prefix, json.dumps(entry), holder, uuid.uuid4().hex)
            if not self._redis.eval(_APPEND, 1, key, *arguments):
                raise error()

    def load_snapshot(self) -> bytes | None:
        return None

    def save_snapshot(self, snapshot: bytes) -> None:
        return None


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
