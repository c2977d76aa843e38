"""One controller at a time.

A study on a local file is held by an advisory lock of the operating system, on a file beside it: the kernel drops it
when the process ends, however it ends, so that the same command can be run again at once. A study on a server is held
by an attribute that a thread keeps refreshing.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from evomerge.errors import InvalidInput, StudyHeld
from evomerge.storage.attributes import WRITER
from evomerge.storage.opening import open_storage, release, with_retries
from evomerge.storage.url import local_file, resolve_url

__all__ = ["Hold", "Patience", "hold"]


class Hold:
    """The right to write to a study."""

    def __init__(self) -> None:
        self._taken_by: str | None = None

    def check(self) -> None:
        """Raise StudyHeld if another controller has taken the study over, because this one was silent for too long."""
        if self._taken_by is not None:
            raise StudyHeld(f"this controller was silent for too long, and the study is now held by {self._taken_by}")

    def lose(self, to: str) -> None:
        self._taken_by = to


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Times in seconds, by which a server's study is refreshed and taken over.

    Attributes:
        refresh: between two signs of life of the holder.
        silence: without a sign of life, after which another one takes over, by the other one's monotonic clock, so that
            it does not matter what the two wall clocks say.
        skew: the largest difference of two wall clocks: a hold that expired longer ago is taken over without waiting.
        settle: until all see a write.
    """

    refresh: float = 5.0
    silence: float = 60.0
    skew: float = 900.0
    settle: float = 2.0


@contextmanager
def hold(
    url: str, name: str, *, directions: Sequence[str] = ("maximize",), patience: Patience | None = None
) -> Iterator[Hold]:
    """Hold a study for writing.

    One SQLite or journal file has one writer, whatever the number of studies in it. On a server, each study has one;
    the study is created if it does not exist yet, to have something to hold.

    Args:
        url: storage URL.
        name: name of the study.
        directions: of the study, should it have to be created.
        patience: other times than the default ones.

    Raises:
        StudyHeld: another controller holds it; the message names it.
    """
    url = resolve_url(url)
    file = local_file(url)
    if file is not None:
        with _hold_file(file.absolute(), name) as held:
            yield held
    else:
        storage = open_storage(url)
        try:
            with _hold_study(storage, name, directions, patience or Patience()) as held:
                yield held
        finally:
            release(storage)


@contextmanager
def _hold_file(file: Path, name: str) -> Iterator[Hold]:
    path = file.with_name(f"{file.name}.writer")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"cannot lock {file}: {error}") from error
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise StudyHeld(f"{file} is held by {_described(lock.read())}; stop it, or wait until it ends") from error
        lock.truncate(0)
        lock.write(json.dumps({**asdict(_me()), "since": _now(), "study": name}) + "\n")
        lock.flush()
        try:
            yield Hold()
        finally:
            # The file stays: whoever deleted it could delete it from under one who has just locked it.
            lock.truncate(0)


@dataclass(frozen=True, kw_only=True)
class _Process:
    """A process, told apart from a later one with the same number by the time of its start."""

    host: str
    boot: str
    pid: int
    start: str


@contextmanager
def _hold_study(storage: BaseStorage, name: str, directions: Sequence[str], patience: Patience) -> Iterator[Hold]:
    study_id = _study_id(storage, name, directions)
    record = _LeaseRecord(storage, study_id, patience)
    _wait_for_turn(record, name, patience)
    record.write()
    time.sleep(patience.settle)  # two may have found the study free at once: the one who wrote last has it
    rival = record.read()
    if rival is None or rival.get("id") != record.id:
        raise StudyHeld(f"the study {name!r} is held by {_described(rival)}, which came at the same moment")
    held, stop = Hold(), threading.Event()
    thread = threading.Thread(target=_keep, args=(record, held, stop, patience), name="evomerge-writer", daemon=True)
    thread.start()
    try:
        yield held
    finally:
        stop.set()
        thread.join()
        record.clear()


class _LeaseRecord:
    """The attribute that names the holder of a study."""

    def __init__(self, storage: BaseStorage, study_id: int, patience: Patience) -> None:
        self.id = uuid.uuid4().hex
        self._storage = storage
        self._study_id = study_id
        self._patience = patience
        self._since = _now()

    def read(self) -> dict[str, Any] | None:
        value = with_retries(lambda: self._storage.get_study_user_attrs(self._study_id).get(WRITER))
        return value if isinstance(value, dict) else None

    def write(self) -> None:
        expires = time.time() + self._patience.silence
        value = {"id": self.id, **asdict(_me()), "since": self._since, "expires": expires}
        with_retries(lambda: self._storage.set_study_user_attr(self._study_id, WRITER, value))

    def clear(self) -> None:
        holder = self.read()
        if holder is not None and holder.get("id") == self.id:
            with_retries(lambda: self._storage.set_study_user_attr(self._study_id, WRITER, None))


def _wait_for_turn(record: _LeaseRecord, name: str, patience: Patience) -> None:
    """Return when nobody holds the study; raise StudyHeld as soon as it is clear that somebody does."""
    holder = record.read()
    if holder is None or _is_gone(holder, patience):
        return
    if not _is_alive(holder):  # on another host: only silence tells
        deadline = time.monotonic() + patience.silence
        while time.monotonic() < deadline:
            time.sleep(min(patience.refresh / 2, max(0.0, deadline - time.monotonic())))
            latest = record.read()
            if latest is None:
                return
            if latest != holder:
                break
        else:
            return
    raise StudyHeld(f"the study {name!r} is held by {_described(holder)}; stop it, or wait until it ends")


def _keep(record: _LeaseRecord, held: Hold, stop: threading.Event, patience: Patience) -> None:
    while not stop.wait(patience.refresh):
        try:
            holder = record.read()
            if holder is None or holder.get("id") != record.id:
                held.lose(_described(holder))
                return
            record.write()
        except StorageInternalError:
            continue  # the server is away; if it stays away, the controller's own writes say so


def _study_id(storage: BaseStorage, name: str, directions: Sequence[str]) -> int:
    try:
        return storage.get_study_id_from_name(name)
    except KeyError:
        pass
    try:
        return storage.create_new_study([StudyDirection[direction.upper()] for direction in directions], name)
    except DuplicatedStudyError:
        return storage.get_study_id_from_name(name)


def _me() -> _Process:
    return _Process(host=socket.gethostname(), boot=_boot(), pid=os.getpid(), start=_start(os.getpid()))


def _boot() -> str:
    """The scope of process numbers: this run of this machine, and in it this container."""
    try:
        return f"{_read('/proc/sys/kernel/random/boot_id').strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return ""


def _start(pid: int) -> str:
    """When a process was started, in clock ticks since boot; "" if there is no such process."""
    # The second field is the program's name in parentheses and may hold anything; the start is number 22.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _is_here(holder: dict[str, Any]) -> bool:
    return (holder.get("host"), holder.get("boot")) == (socket.gethostname(), _boot())


def _is_alive(holder: dict[str, Any]) -> bool:
    """Whether the holder is a process of this machine that runs."""
    start = holder.get("start")
    return _is_here(holder) and bool(start) and _start(int(holder.get("pid", 0))) == start


def _is_gone(holder: dict[str, Any], patience: Patience) -> bool:
    """Whether nobody can still be writing: a dead process of this machine, or a hold that expired long ago."""
    if _is_here(holder) and holder.get("start") and not _is_alive(holder):
        return True
    return float(holder.get("expires", 0.0)) + patience.skew < time.time()


def _described(holder: dict[str, Any] | str | None) -> str:
    if isinstance(holder, str):
        try:
            holder = json.loads(holder)
        except ValueError:
            holder = None
    if not isinstance(holder, dict):
        return "another controller"
    return f"the controller with process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
