"""A storage that is away is waited for, whichever library says so; what else is wrong is not."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy import exc

from evomerge.cli import run_command
from evomerge.clock import ManualClock
from evomerge.errors import Interrupted, InvalidInput
from evomerge.storage.patience import StorageAway, StoragePatience, full_disk, is_away, is_full, reason_of


class Hours(ManualClock):
    """A clock that starts at 0, and remembers how long each sleep was."""

    def __init__(self) -> None:
        super().__init__(seconds=0.0)
        self.naps: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        super().sleep(seconds)


def sqlite_error(code: int, text: str) -> exc.OperationalError:
    cause = sqlite3.OperationalError(text)
    cause.sqlite_errorcode = code  # type: ignore[misc]
    return exc.OperationalError("INSERT", {}, cause)


def from_optuna(cause: Exception) -> StorageInternalError:
    error = StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = cause
    return error


AWAY = {
    "optuna": StorageInternalError("a transaction was not stored"),
    "a server that was stopped": exc.OperationalError("SELECT 1", {}, Exception("server closed the connection")),
    "a dead connection": exc.InterfaceError("SELECT 1", {}, Exception(0, "")),
    "what follows a dead connection": exc.PendingRollbackError("Can't reconnect until invalid transaction"),
    "optuna, about a dead connection": from_optuna(exc.OperationalError("INSERT", {}, Exception("gone away"))),
    "a locked file": sqlite_error(sqlite3.SQLITE_BUSY, "database is locked"),
    "a full disk": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/artifacts/x"),
    "a network file system that is gone": OSError(errno.ESTALE, "Stale file handle"),
    "a connection": ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
}
WRONG = {
    "too long a value": exc.DataError("INSERT", {}, Exception(1406, "Data too long for column 'value_json'")),
    "optuna, about too long a value": from_optuna(exc.DataError("INSERT", {}, Exception(1406, "Data too long"))),
    "a missing table": sqlite_error(sqlite3.SQLITE_ERROR, "no such table: studies"),
    "a double key": exc.IntegrityError("INSERT", {}, Exception("duplicate key")),
    "ours": ValueError("ours"),
    "a name that no file can have": OSError(errno.ENAMETOOLONG, "File name too long"),
    "the end of another wait": StorageAway("away"),
}


@pytest.mark.parametrize("error", AWAY.values(), ids=AWAY)
def test_it_is_away_whichever_library_says_so(error: Exception) -> None:
    assert is_away(error)


@pytest.mark.parametrize("error", WRONG.values(), ids=WRONG)
def test_what_is_wrong_for_ever_is_not_away(error: Exception) -> None:
    assert not is_away(error)


def failing(times: int, error: Exception) -> Callable[[], str]:
    """A call that fails so often, and then answers."""
    errors = [error] * times

    def call() -> str:
        if errors:
            raise errors.pop()
        return "answer"

    return call


def test_a_call_is_repeated_until_the_storage_is_back() -> None:
    clock, lines = Hours(), []
    patience = StoragePatience(clock=clock, say=lines.append)
    assert patience.retry(failing(20, AWAY["a server that was stopped"]), "the storage") == "answer"
    assert 100 < clock.seconds < 600
    assert lines[0].startswith("waiting: the storage cannot be used: the connection was lost")
    assert lines[-1].startswith("the storage answers again, after")
    assert len(lines) == 2 + (clock.seconds) // 60  # one line a minute, and the last one


def test_a_short_absence_is_not_worth_a_line() -> None:
    lines: list[str] = []
    StoragePatience(clock=Hours(), say=lines.append).retry(failing(3, AWAY["a locked file"]), "the storage")
    assert lines == []


def test_patience_ends_resumable_after_its_seconds() -> None:
    clock = Hours()
    with pytest.raises(StorageAway, match=r"for 10 min 0 s now.*run the same command again") as raised:
        StoragePatience(clock=clock).retry(failing(10**6, AWAY["optuna"]), "the storage")
    assert raised.value.exit_code == 3
    assert clock.seconds == pytest.approx(600)
    assert max(clock.naps) <= 0.5


def test_without_patience_the_first_failure_says_so() -> None:
    clock = Hours()
    with pytest.raises(StorageAway):
        StoragePatience(clock=clock, seconds=0.0).retry(failing(1, AWAY["optuna"]), "the storage")
    assert clock.naps == []


def test_a_call_that_hangs_for_longer_than_the_patience_is_tried_again() -> None:
    clock = Hours()
    again = failing(1, AWAY["a connection"])

    def hang() -> str:
        clock.seconds += 900.0
        return again()

    assert StoragePatience(clock=clock).retry(hang, "the storage") == "answer"


def test_a_stop_is_noticed_within_a_second_of_a_wait() -> None:
    clock = Hours()

    def check() -> None:
        if clock.seconds >= 200:
            raise Interrupted("stopped by SIGTERM")

    with pytest.raises(Interrupted, match="SIGTERM"):
        StoragePatience(clock=clock, check=check).retry(failing(10**6, AWAY["optuna"]), "the storage")
    assert clock.seconds - 200 < 1


def test_what_is_wrong_is_raised_at_once() -> None:
    for error in (*WRONG.values(), InvalidInput("no such study")):
        with pytest.raises(type(error)):
            StoragePatience(clock=Hours()).retry(failing(1, error), "the storage")


@pytest.mark.parametrize(
    "error",
    [AWAY["a full disk"], from_optuna(sqlite_error(sqlite3.SQLITE_FULL, "database or disk is full"))],
    ids=["file", "sqlite"],
)
def test_a_full_disk_is_said_at_once_and_waited_for_half_a_minute(error: Exception, tmp_path: Path) -> None:
    clock, lines = Hours(), []
    assert is_full(error)
    with pytest.raises(StorageAway, match=rf"disk of {tmp_path} is full.*B free.*make room") as raised:
        StoragePatience(clock=clock, say=lines.append).retry(failing(10**6, error), "the storage", tmp_path)
    assert raised.value.exit_code == 3
    assert clock.seconds == pytest.approx(30)
    assert len(lines) == 1
    assert "0 s now" in lines[0]


def test_reasons_are_our_own_words() -> None:
    secret = exc.OperationalError("SELECT", {}, Exception("failed to resolve host 'geheim@host': unknown"))
    assert reason_of(from_optuna(secret)) == "the name of its host cannot be resolved"
    assert reason_of(exc.OperationalError("SELECT", {}, RuntimeError("geheim"))) == "RuntimeError"


def test_a_command_that_finds_a_disk_full_ends_as_one_to_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "merge" / "model.safetensors"))

    monkeypatch.setattr("evomerge.spec.load_spec", full)
    assert run_command(["check", "search.yaml"]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert f"the disk of {tmp_path}/merge is full" in said
    assert "make room, and run the same command again" in said
    assert full_disk(ValueError("ours")) is None
