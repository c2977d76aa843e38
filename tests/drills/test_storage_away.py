"""Storages that go away under a running search, and come back: the search goes on as if nothing had happened."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
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


@pytest.mark.drill("server {trouble.__name__}, away for {seconds:g} s, twice")
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
        said = drill.end_of(process)
    assert process.returncode == 0, said
    drill.check_whole(undisturbed)


@pytest.mark.drill("server away for longer than storage_patience")
def test_patience_ends_as_one_that_can_be_resumed_and_is_resumed(server, make_drill: Callable, undisturbed) -> None:
    drill = make_drill(server.url, storage_patience=5)
    with drill.running() as process:
        drill.wait_for(10)
        server.kill()
        said = drill.end_of(process)
    assert process.returncode == 3, said
    assert "127.0.0.1" not in said
    with drill.running() as process:  # the server is not there yet
        said = drill.end_of(process)
    assert process.returncode == 3, said
    assert "cannot be opened at present" in said
    server.start()
    with drill.running() as process:
        said = drill.end_of(process)
    assert process.returncode == 0, said
    drill.check_whole(undisturbed)


@pytest.mark.drill("SIGTERM while the server is {away}")
@pytest.mark.parametrize("away", ["gone", "frozen"])
def test_a_signal_ends_a_wait(server, away: str, make_drill: Callable, undisturbed) -> None:
    leave, come_back = (server.kill, server.start) if away == "gone" else (server.freeze, server.thaw)
    drill = make_drill(server.url)
    with drill.running() as process:
        drill.wait_for(10)
        leave()
        try:
            time.sleep(5.0)
            said = drill.signal(process, signal.SIGTERM, 60.0)
        finally:
            come_back()
    assert process.returncode == 3, said
    assert drill.row.seconds_to_end < 5.0
    with drill.running() as process:
        said = drill.end_of(process)
    assert process.returncode == 0, said
    drill.check_whole(undisturbed)


@pytest.mark.drill("file locked by another program for 20 s")
def test_a_file_that_another_program_locks_is_waited_for(tmp_path: Path, make_drill: Callable, undisturbed) -> None:
    drill = make_drill(f"sqlite:///{tmp_path}/study.db")
    with drill.running() as process:
        drill.wait_for(10)
        with contextlib.closing(sqlite3.connect(tmp_path / "study.db", isolation_level=None, timeout=60)) as other:
            other.execute("BEGIN EXCLUSIVE")
            time.sleep(20.0)
            other.rollback()
        said = drill.end_of(process)
    assert process.returncode == 0, said
    drill.check_whole(undisturbed)


# Storage -> KiB of a file system with room for some twenty trials.
SMALL = {"sqlite:///{}/study.db": 240, "journal:///{}/study.journal": 120}


@pytest.fixture
def small_disk(tmp_path: Path, url: str) -> Iterator[Path]:
    """A file system with room for some twenty trials."""
    folder = tmp_path / "small"
    folder.mkdir()
    options = f"size={SMALL[url]}k"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "evomerge", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a file system (root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.drill("disk full until the next run")
@pytest.mark.parametrize("url", SMALL)
def test_a_full_disk_is_named_and_the_search_goes_on_when_there_is_room(
    url: str, small_disk: Path, make_drill: Callable, undisturbed
) -> None:
    drill = make_drill(url.format(small_disk))
    with drill.running() as process:
        said = drill.end_of(process)
    assert process.returncode == 3, said
    assert f"the disk of {small_disk} is full, or its quota is used up (" in said
    assert "make room, and run the same command again" in said
    assert drill.trials()
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    with drill.running() as process:
        said = drill.end_of(process)
    assert process.returncode == 0, said
    drill.check_whole(undisturbed)


@pytest.mark.drill("disk full for a moment")
@pytest.mark.parametrize("url", SMALL)
def test_room_that_is_made_soon_is_enough(url: str, small_disk: Path, make_drill: Callable, undisturbed) -> None:
    drill = make_drill(url.format(small_disk))
    with drill.running() as process:
        while "is full" not in drill.said:
            assert process.poll() is None, drill.said
            time.sleep(0.2)
        subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
        said = drill.end_of(process)
    assert process.returncode == 0, said
    drill.check_whole(undisturbed)
