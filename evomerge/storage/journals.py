"""Journals in files and in Redis: each entry is there once, and none of a former holder."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, Final, TypeVar

from optuna.exceptions import StorageInternalError
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend, JournalFileSymlinkLock

from evomerge.errors import Interrupted
from evomerge.storage.journal_repair import cut_torn_line
from evomerge.storage.patience import IMPATIENT
from evomerge.storage.url import described_url
from evomerge.whole_files import discard_asides, replace_where

__all__ = ["FileJournal", "JournalOvertaken", "RedisJournal"]

_Result = TypeVar("_Result")

_ANSWER_SECONDS: Final = 4.0  # after which a server that hangs is asked again, so that a stop is noticed meanwhile
_COUNTED_SECONDS: Final = 7 * 24 * 3600  # that the entries of a writer are counted after its last one

_PIECE: Final = 1 << 20  # bytes of a journal that are read together
_ENTRIES: Final = 1000  # of a journal in Redis, likewise

# Appends entries to the log, in the layout of Optuna's own backend, unless another one has the lease, the server has
# lost entries, or others than the expected number precede them. Beside it stands how many times each writer has
# appended: an append may reach the server twice, and late.
_APPEND: Final = """
local last = tonumber(redis.call('get', KEYS[1]) or '-1')
if tonumber(redis.call('get', KEYS[2]) or '0') >= tonumber(ARGV[1]) then return last end
if last < tonumber(ARGV[2]) then return -2 end
if ARGV[4] ~= '' and redis.call('hget', KEYS[3], 'id') ~= ARGV[4] then return -3 end
if ARGV[5] ~= '' and last ~= tonumber(ARGV[5]) then return -4 end
redis.call('set', KEYS[1], last + #ARGV - 5)
for i = 6, #ARGV do redis.call('set', ':log:' .. (last + i - 5), ARGV[i]) end
redis.call('set', KEYS[2], ARGV[1], 'EX', ARGV[3])
return last + #ARGV - 5
"""
_FORGOTTEN: Final = -2
_FENCED: Final = -3
_OVERTAKEN: Final = -4


class JournalOvertaken(Exception):
    """Somebody else has written to a journal since it was read; nothing was appended."""


class FileJournal(JournalFileBackend):
    """A journal file. An entry is there once and whole, or nothing of it, and is waited for while the disk is away.

    Attributes:
        fence: called before each entry under the journal's lock; raises where the entry may not be written.
        patience: with which the file is waited for.
    """

    patience = IMPATIENT

    def __init__(self, file: Path) -> None:
        self.fence: Callable[[], None] = lambda: None
        self._known_end: int | None = None  # where entries have to be appended, if they follow from others
        self._appended_to = 0  # where the latest entries ended
        # Absolute, because Optuna's lock is a symbolic link with this path as its target: one that dangles is never
        # recognised as stale, and a crash while it is held would block the journal for ever.
        self._path = file.absolute()
        self._append_lock = JournalFileSymlinkLock(str(self._path))
        super().__init__(str(self._path), self._append_lock)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        entries: Iterator[dict[str, Any]] | None = None
        number = log_number_from

        def following() -> dict[str, Any] | None:
            nonlocal entries
            try:
                entries = super(FileJournal, self).read_logs(number) if entries is None else entries
                return next(entries, None)
            except OSError:
                entries = None  # a generator that has raised is at its end
                raise

        while (entry := self._wait(following)) is not None:
            number += 1
            yield entry

    def load(self) -> Iterator[list[dict[str, Any]]]:
        """All entries, many at a time; `read_logs` goes on after them."""
        number = offset = 0
        with self._wait(lambda: self._path.open("rb")) as file:
            while lines := file.readlines(_PIECE):
                is_torn = not lines[-1].endswith(b"\n")  # somebody is writing it
                if is_torn:
                    lines.pop()
                yield json.loads(b"[" + b",".join(lines) + b"]")
                number += len(lines)
                offset += sum(map(len, lines))
                if is_torn:
                    break  # its end may be there by now, without its beginning
        self._log_number_offset = {0: 0, number: offset}

    def append_after(self, number: int, logs: list[dict[str, Any]]) -> None:
        """Append entries that follow from the first `number` ones, which have been read.

        Raises:
            JournalOvertaken: there are others by now.
        """
        self._known_end = self._log_number_offset[number]
        try:
            self.append_logs(logs)
            self._log_number_offset = {0: 0, number + len(logs): self._appended_to}
        finally:
            self._known_end = None

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        entries = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in logs).encode()
        begun: list[int] = []  # where each try began to write

        def append() -> None:
            with self._locked(), self._path.open("rb+", buffering=0) as file:
                # Only now: whoever takes the lease replaces the journal by a copy, so that all that is written to this
                # file after another one was found to be the holder, or after a stop of any length, is written to
                # nowhere.
                self.fence()
                _cut_own(file, entries, begun)
                cut_torn_line(file, self._path)  # of a writer that was killed, or had no room, while we were running
                begun.append(file.seek(0, os.SEEK_END))
                if self._known_end not in (None, begun[-1]):
                    raise JournalOvertaken
                self._appended_to = begun[-1] + len(entries)
                try:
                    _write_all(file.fileno(), entries)
                    os.fsync(file.fileno())
                except OSError:
                    with suppress(OSError):
                        file.truncate(begun[-1])
                    raise
                if not _is_at(file.fileno(), self._path):
                    self.fence()
                    raise StorageInternalError(f"the journal {self._path} was replaced while an entry was written")

        self._wait(append)

    def leave_former(self) -> None:
        """Replace the file by a copy: what those who were found not to be the holder still write is written to nowhere.

        Raises:
            EvomergeError: somebody else is the holder by now.
        """

        def copy() -> None:
            with self._locked():
                self.fence()
                discard_asides(self._path)
                if not replace_where(self._path, partial(shutil.copy2, self._path), self._passes_fence):
                    self.fence()
                    raise StorageInternalError(f"the journal {self._path} was replaced while it was copied")

        self._wait(copy)

    def _passes_fence(self) -> bool:
        self.fence()
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._append_lock.acquire()
        try:
            yield
        finally:
            with suppress(RuntimeError):  # we were slow, and somebody has broken the lock
                self._append_lock.release()

    def _wait(self, call: Callable[[], _Result]) -> _Result:
        return self.patience.retry(call, described_url(f"journal:///{self._path}"), self._path.parent)


class RedisJournal(BaseJournalBackend):
    """A journal in Redis. Entries are there once, all that are appended together or none, and the server is waited for
    while it is away.

    Optuna's own backend has snapshots, which are pickles: loading one would run the code of whoever can write there.

    Attributes:
        fence: key of a lease, the id of its holder, without whom no entry is appended, and the error for others.
        patience: with which the server is waited for.

    Raises:
        ImportError: the package redis is not installed.
        ValueError: not a URL of redis.
    """

    fence: tuple[str, str, Callable[[], Exception]] | None = None
    patience = IMPATIENT

    def __init__(self, url: str) -> None:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        # The client's own repetitions could not be interrupted.
        self._redis = Redis.from_url(
            url, socket_connect_timeout=_ANSWER_SECONDS, socket_timeout=_ANSWER_SECONDS, retry=Retry(NoBackoff(), 0)
        )
        self._awaited = described_url(url)
        self._counter = f":appended:{uuid.uuid4().hex}"
        self._appended = 0
        self._known = -1  # number of the latest entry that this process has seen

    @property
    def client(self) -> Any:
        """The connection to the server."""
        return self._redis

    def check(self) -> None:
        """Ask the server for something, so that what it refuses is heard."""
        self._redis.get(":log_number")

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        for entries in self._pieces(log_number_from):
            yield from entries

    def load(self) -> Iterator[list[dict[str, Any]]]:
        """All entries, many at a time."""
        return self._pieces(0)

    def _pieces(self, start: int) -> Iterator[list[dict[str, Any]]]:
        found = self._wait(lambda: self._redis.get(":log_number"))
        count = 0 if found is None else int(found) + 1
        if count <= self._known:
            raise self._has_forgotten()
        for first in range(start, count, _ENTRIES):
            numbers = range(first, min(first + _ENTRIES, count))
            texts = self._wait(partial(self._redis.mget, [f":log:{number}" for number in numbers]))
            if None in texts:
                raise self._has_forgotten()
            self._known = max(self._known, numbers[-1])
            yield [json.loads(text) for text in texts]

    def append_after(self, number: int, logs: list[dict[str, Any]]) -> None:
        """Append entries that follow from the first `number` ones, which have been read.

        Raises:
            JournalOvertaken: there are others by now.
        """
        self._append(logs, str(number - 1))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self._append(logs, "")

    def _append(self, logs: list[dict[str, Any]], follow: str) -> None:
        """Append entries, where `follow` is a number only right behind the entry that has it."""
        lease, holder, error = self.fence or ("", "", StorageInternalError)
        self._appended += 1
        keys = (":log_number", self._counter, lease)
        arguments = (self._appended, self._known, _COUNTED_SECONDS, holder, follow, *map(json.dumps, logs))
        answer = self._wait(partial(self._redis.eval, _APPEND, len(keys), *keys, *arguments))
        if answer == _FENCED:
            raise error()
        if answer == _FORGOTTEN:
            raise self._has_forgotten()
        if answer == _OVERTAKEN:
            raise JournalOvertaken
        self._known = max(self._known, int(answer))

    def _wait(self, call: Callable[[], Any]) -> Any:
        return self.patience.retry(call, self._awaited)

    def _has_forgotten(self) -> Interrupted:
        return Interrupted(
            f"{self._awaited} has lost entries that it had acknowledged: let the server keep an append-only file "
            "(appendonly yes, appendfsync always); run the same command again to go on with what is there"
        )


def _cut_own(file: FileIO, entries: bytes, begun: Sequence[int]) -> None:
    """Cut off what an earlier try has written, where nobody has appended since."""
    if begun and begun[-1] < file.seek(0, os.SEEK_END):
        file.seek(begun[-1])
        if entries.startswith(file.read()):
            file.truncate(begun[-1])


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
