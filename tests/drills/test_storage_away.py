"""Storages that go away under a running search, and come back: the search goes on as if nothing had happened."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.storage.opening import open_storage, release

pytestmark = pytest.mark.drill

SERVERS = ("postgres", "mariadb", "redis")


@pytest.fixture(params=SERVERS)
def server(request):
    """A server without a study of an earlier drill."""
    server = request.getfixturevalue(request.param)
    with contextlib.suppress(KeyError):
        storage = open_storage(server.url)
        for study in storage.get_all_studies():
            storage.delete_study(study._study_id)
        release(storage)
    return server


def restarted(server, seconds: float) -> None:
    server.kill()
    time.sleep(seconds)
    server.start()


def frozen(server, seconds: float) -> None:
    server.freeze()
    time.sleep(seconds)
    server.thaw()


@pytest.mark.parametrize(
    ("trouble", "seconds"), [(restarted, 0.0), (restarted, 1.0), (restarted, 10.0), (frozen, 30.0)]
)
def test_a_server_that_goes_away_loses_and_doubles_nothing(
    server, trouble, seconds: float, make_drill: Callable, undisturbed
) -> None:
    drill = make_drill(server.url)
    with drill.running() as process:
        for finished in (5, 25):
            drill.wait_for(finished)
            trouble(server, seconds)
        said, _ = process.communicate()
    assert process.returncode == 0, said
    drill.check_whole(undisturbed)


def test_patience_ends_as_one_that_can_be_resumed_and_is_resumed(server, make_drill: Callable, undisturbed) -> None:
    drill = make_drill(server.url, storage_patience=5)
    with drill.running() as process:
        drill.wait_for(10)
        server.kill()
        said, _ = process.communicate()
    assert process.returncode == 3, said
    assert "127.0.0.1" not in said
    with drill.running() as process:  # the server is not there yet
        said, _ = process.communicate()
    assert process.returncode == 3, said
    assert "cannot be opened at present" in said
    server.start()
    with drill.running() as process:
        said, _ = process.communicate()
    assert process.returncode == 0, said
    drill.check_whole(undisturbed)


def test_a_signal_ends_a_wait(server, make_drill: Callable, undisturbed) -> None:
    drill = make_drill(server.url)
    with drill.running() as process:
        drill.wait_for(10)
        server.kill()
        time.sleep(5.0)
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        said, _ = process.communicate()
        taken = time.monotonic() - asked
    server.start()
    assert process.returncode == 3, said
    assert taken < 10
    with drill.running() as process:
        said, _ = process.communicate()
    assert process.returncode == 0, said
    drill.check_whole(undisturbed)


def test_a_file_that_another_program_locks_is_waited_for(tmp_path: Path, make_drill: Callable, undisturbed) -> None:
    drill = make_drill(f"sqlite:///{tmp_path}/study.db")
    with drill.running() as process:
        drill.wait_for(10)
        with contextlib.closing(sqlite3.connect(tmp_path / "study.db", isolation_level=None, timeout=60)) as other:
            other.execute("BEGIN EXCLUSIVE")
            time.sleep(20.0)
            other.rollback()
        said, _ = process.communicate()
    assert process.returncode == 0, said
    drill.check_whole(undisturbed)
