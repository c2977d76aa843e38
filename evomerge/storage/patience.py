"""A storage that is away: the errors that say so, and calls that are repeated until it is back.

A server that is restarted, a network that is cut, a disk that is full: whatever the library, it is one kind of trouble.
The text of a foreign error is never shown, since it may hold parts of the storage's URL; its reason is said in words.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy import exc

from evomerge.clock import SYSTEM_CLOCK, Clock
from evomerge.errors import EvomergeError, Interrupted, causes
from evomerge.messages import duration, in_bytes
from evomerge.whole_files import FULL

__all__ = [
    "IMPATIENT",
    "StorageAway",
    "StoragePatience",
    "full_disk",
    "is_away",
    "is_full",
    "is_refused",
    "reason_of",
    "said_of_full_disk",
]

_Result = TypeVar("_Result")

SECONDS: Final = 600.0  # of patience, where nobody says otherwise
FULL_SECONDS: Final = 30.0  # of patience with a full disk of this machine, which rarely mends itself
LINE_SECONDS: Final = 60.0  # between two lines about one wait
_QUIET: Final = 1.0  # seconds of waiting that are not worth a line
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 10.0
_SLICE: Final = 0.5  # of a pause, between two looks whether somebody wants to stop

_OWN_FAULT: Final = (errno.EINVAL, errno.EISDIR, errno.ENAMETOOLONG)
_AWAY: Final = (
    exc.OperationalError,
    exc.InterfaceError,
    exc.InternalError,
    exc.TimeoutError,
    exc.PendingRollbackError,  # these two are what follows a connection that has died
    exc.ResourceClosedError,
)
_REDIS_AWAY: Final = ("ConnectionError", "TimeoutError", "ReadOnlyError", "OutOfMemoryError", "ClusterDownError")
_REDIS_ANSWERS: Final = ("BUSY", "LOADING", "MASTERDOWN", "MISCONF", "OOM", "READONLY", "TRYAGAIN", "UNKILLABLE")
_REDIS_REFUSED: Final = ("AuthenticationError", "NoPermissionError", "AuthenticationWrongNumberOfArgsError")

# What a text of a driver contains, and what we say instead. The first that is found counts.
_REFUSALS: Final = (
    ("password authentication failed", "the server refuses the user or the password"),
    ("no password supplied", "the server asks for a password"),
    ("access denied", "the server refuses the user or the password"),
    ("wrongpass", "the server refuses the user or the password"),
    ("invalid username-password", "the server refuses the user or the password"),
    ("noauth", "the server asks for a password"),
    ("authentication required", "the server asks for a password"),
    ("called without any password configured", "the server has no password, the URL has one"),
    ("noperm", "the server does not allow this user what is needed"),
    ("permission denied", "the server does not allow this user what is needed"),
    ("no pg_hba.conf entry", "the server does not let this user in from here (pg_hba.conf)"),
    ("unknown database", "the server has no database of that name"),
    ("does not exist", "the server has no database or user of that name"),
    ("db index is out of range", "the server has no database of that number"),
)
_REASONS: Final = (
    ("no space left", "the server's disk is full"),
    ("misconf", "the server cannot write to its disk"),
    ("connection refused", "nothing listens there (connection refused)"),
    ("can't connect", "it cannot be reached"),
    ("name or service not known", "the name of its host cannot be resolved"),
    ("name resolution", "the name of its host cannot be resolved"),
    ("resolve host", "the name of its host cannot be resolved"),
    ("starting up", "the server is starting"),
    ("loading", "the server is starting"),
    ("recovery mode", "the server is recovering"),
    ("shutting down", "the server is shutting down"),
    ("shutdown", "the server is shutting down"),
    ("administrator command", "the server has ended the connection"),
    ("too many", "the server has too many connections"),
    ("server closed the connection", "the connection was lost"),
    ("lost connection", "the connection was lost"),
    ("gone away", "the connection was lost"),
    ("connection closed", "the connection was lost"),
    ("connection reset", "the connection was lost"),
    ("broken pipe", "the connection was lost"),
    ("timed out", "it does not answer in time"),
    ("timeout", "it does not answer in time"),
    ("read only", "it can only be read at present"),
    ("read-only", "it can only be read at present"),
    ("readonly", "it can only be read at present"),
    ("database is locked", "another program has locked it"),
    ("deadlock", "another program writes to it at the same moment"),
    ("ssl", "the encrypted connection (TLS) fails"),
)


class StorageAway(Interrupted):
    """The storage cannot be reached, or was away for longer than a run waits; the same command goes on."""


def is_away(error: BaseException) -> bool:
    """Whether an error of a library says that the storage is away at present, rather than that a call was wrong.

    It knows the errors of Optuna, SQLAlchemy and redis, and those of files: for calls that only use a storage.
    """
    if isinstance(error, StorageInternalError):
        return error.__cause__ is None or is_away(error.__cause__)
    if isinstance(error, exc.SQLAlchemyError):
        if isinstance(getattr(error, "orig", None), sqlite3.Error):
            return isinstance(error, _AWAY) and _sqlite_code(error) != sqlite3.SQLITE_ERROR
        return isinstance(error, _AWAY) or (isinstance(error, exc.DBAPIError) and error.connection_invalidated)
    if isinstance(error, OSError):
        return error.errno not in _OWN_FAULT
    if _is_of_redis(error):
        return _is_kind(error, _REDIS_AWAY) or str(error).upper().startswith(_REDIS_ANSWERS)
    return False


def is_refused(error: BaseException) -> bool:
    """Whether a server has answered, and does not let us in: another user, password or database is needed."""
    return any(
        (_is_of_redis(each) and _is_kind(each, _REDIS_REFUSED)) or _in_words(each, _REFUSALS) is not None
        for each in causes(error)
        if not isinstance(each, OSError) and not isinstance(each, sqlite3.Error)
    )


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk of this machine is full, or that no larger file is allowed."""
    return any(
        (isinstance(each, OSError) and each.errno in FULL) or _sqlite_code(each) == sqlite3.SQLITE_FULL
        for each in causes(error)
    )


def full_disk(error: BaseException) -> StorageAway | None:
    """The end of a command that could not write what it had to, for want of room; None for an error of another kind."""
    said = said_of_full_disk(error)
    return None if said is None else StorageAway(f"{said}; make room, and run the same command again")


def said_of_full_disk(error: BaseException) -> str | None:
    """The disk that is full, with the room that is left; None for an error of another kind."""
    if not is_full(error):
        return None
    # of a copy the second name is that of the file that is written
    names = (each.filename2 or each.filename for each in causes(error) if isinstance(each, OSError))
    name = next((os.fsdecode(name) for name in names if isinstance(name, str | bytes)), None)
    folder = Path.cwd() if name is None else Path(name).absolute().parent
    disk = "a disk" if name is None else f"the disk of {folder}"
    return f"{disk} is full, or its quota is used up ({folder}: {_free(folder)})"


def reason_of(error: BaseException) -> str:
    """The reason of an error in our own words: the library's may hold a password, or what was taken for a host."""
    found = list(causes(error))
    for each in found:
        said = _in_words(each, (*_REFUSALS, *_REASONS))
        if said is not None:
            return said
        if isinstance(each, OSError) and each.errno is not None:
            return os.strerror(each.errno)
    last = found[-1]
    code = getattr(last, "sqlstate", None) or next((part for part in last.args[:1] if isinstance(part, int)), None)
    return type(last).__name__ if code is None else f"{type(last).__name__} {code}"


@dataclass(kw_only=True, eq=False)
class StoragePatience:
    """The patience with a storage that is away: how long it is waited for, and who hears of it.

    Once a wait was in vain, nothing is waited for any more: what a run still has to store at its end must not keep it.

    Attributes:
        seconds: after which a wait ends the run.
        say: is told once a minute what is awaited, and when it is back.
        check: called twice a second during a wait; raises where somebody wants to stop.
    """

    seconds: float = SECONDS
    say: Callable[[str], None] = lambda line: None
    check: Callable[[], None] = lambda: None
    clock: Clock = field(default=SYSTEM_CLOCK, repr=False)
    _is_spent: bool = field(default=False, init=False, repr=False)

    def retry(self, call: Callable[[], _Result], awaited: str, folder: Path | None = None) -> _Result:
        """Call again while the storage is away, with pauses that double up to 10 s.

        Args:
            call: may be repeated: what it stores twice is stored once.
            awaited: the storage as it may be shown.
            folder: where a storage of files lies.

        Raises:
            StorageAway: it is still away.
        """
        begun: float | None = None  # at the first error: a call that hung for longer than the patience is tried again
        said, pause = -math.inf, _FIRST_PAUSE
        while True:
            try:
                result = call()
            except Exception as error:
                if isinstance(error, EvomergeError) or not is_away(error):
                    raise
                begun = self.clock.monotonic() if begun is None else begun
                trouble = _Trouble(awaited, error, folder, 0.0 if self._is_spent else self.seconds)
            else:
                if begun is not None and said > -math.inf:
                    self.say(f"{awaited} answers again, after {duration(self.clock.monotonic() - begun)}")
                return result
            now = self.clock.monotonic()
            if now - begun >= trouble.seconds:
                self._is_spent = True
                raise StorageAway(trouble.ended(now - begun))
            if now - said >= LINE_SECONDS and (now - begun >= _QUIET or trouble.full):
                self.say(trouble.awaited_since(now - begun))
                said = now
            self._pause(min(pause, begun + trouble.seconds - now))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _pause(self, seconds: float) -> None:
        end = self.clock.monotonic() + seconds
        while (left := end - self.clock.monotonic()) > 0:
            self.check()
            self.clock.sleep(min(left, _SLICE))
        self.check()


IMPATIENT: Final = StoragePatience(seconds=0.0)  # for commands that somebody watches


class _Trouble:
    """A storage that is away, in words."""

    def __init__(self, awaited: str, error: Exception, folder: Path | None, seconds: float) -> None:
        self.full = folder is not None and is_full(error)
        self.seconds = min(seconds, FULL_SECONDS) if self.full else seconds
        self._what = f"{awaited} cannot be used: {reason_of(error)}"
        if self.full and folder is not None:
            self._what = f"the disk of {folder} is full, or its quota is used up ({_free(folder)})"

    def awaited_since(self, elapsed: float) -> str:
        return f"waiting: {self._what}; for {duration(elapsed)} now, at most {duration(self.seconds)}"

    def ended(self, elapsed: float) -> str:
        rest = "make room, and run" if self.full else "run"
        since = f", for {duration(elapsed)} now" if elapsed >= _QUIET else ""
        return f"{self._what}{since}; all that was finished is stored, {rest} the same command again to go on"


def _free(folder: Path) -> str:
    try:
        return f"{in_bytes(shutil.disk_usage(folder).free)} free"
    except OSError:
        return "it cannot be looked at"


def _in_words(error: BaseException, table: tuple[tuple[str, str], ...]) -> str | None:
    # The first argument alone: SQLAlchemy's own text has the statement with its parameters in it.
    text = " ".join(str(part) for part in error.args[:2]).lower() if not isinstance(error, exc.DBAPIError) else ""
    return next((said for part, said in table if part in text), None)


def _sqlite_code(error: BaseException) -> int | None:
    """SQLite's primary code of an error, or of the one that SQLAlchemy has wrapped."""
    code = getattr(getattr(error, "orig", error), "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else None


def _is_of_redis(error: BaseException) -> bool:
    module: Any = sys.modules.get("redis.exceptions")  # an error of a package that was never imported is not its
    return module is not None and isinstance(error, module.RedisError)


def _is_kind(error: BaseException, names: tuple[str, ...]) -> bool:
    return any(kind.__name__ in names for kind in type(error).__mro__)
