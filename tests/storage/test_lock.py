"""Two controllers on one study, as real processes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from evomerge.errors import StudyHeld
from evomerge.storage import lock
from evomerge.storage.attributes import WRITER
from evomerge.storage.lock import Patience, hold
from evomerge.storage.opening import open_storage

QUICK = Patience(refresh=0.1, silence=1.5, skew=900.0, settle=0.1)

HOLDER = """
import sys, time
from evomerge.storage import lock
from evomerge.storage.opening import open_storage
url, remote = sys.argv[1:]
if remote == "server":  # the rules for servers, without a server
    patience = lock.Patience(refresh=0.1, silence=1.5, skew=900.0, settle=0.1)
    held = lock._hold_study(open_storage(url), "s", ["maximize"], patience)
else:
    held = lock.hold(url, "s")
with held:
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holders() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def start(holders: list[subprocess.Popen[str]], url: str, kind: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, url, kind], stdout=subprocess.PIPE, text=True)
    holders.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("url", ["sqlite:///{}/deep/study.db", "journal:///{}/deep/study.journal"])
def test_a_file_has_one_writer_until_it_is_killed(
    url: str, tmp_path: Path, holders: list[subprocess.Popen[str]]
) -> None:
    url = url.format(tmp_path)
    first = start(holders, url, "file")
    with pytest.raises(StudyHeld, match=rf"process {first.pid} on .*, since 20") as error, hold(url, "s"):
        pass
    assert error.value.exit_code == 6
    first.kill()
    first.wait()
    with hold(url, "s") as held:  # at once
        held.check()
    with hold(url, "s"):
        pass


def test_one_process_cannot_hold_a_file_twice(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    with hold(url, "s"), pytest.raises(StudyHeld), hold(url, "other"):
        pass


def test_a_holder_that_fails_lets_go(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    with pytest.raises(ZeroDivisionError), hold(url, "s"):
        raise ZeroDivisionError
    with hold(url, "s"):
        pass


def server(tmp_path: Path) -> optuna.storages.BaseStorage:
    return open_storage(f"sqlite:///{tmp_path}/study.db")


def test_a_study_on_a_server_has_one_writer_until_it_is_killed(
    tmp_path: Path, holders: list[subprocess.Popen[str]]
) -> None:
    first = start(holders, f"sqlite:///{tmp_path}/study.db", "server")
    begin = time.monotonic()
    with (
        pytest.raises(StudyHeld, match=rf"process {first.pid}"),
        lock._hold_study(server(tmp_path), "s", ["maximize"], QUICK),
    ):
        pass
    first.kill()
    first.wait()
    with lock._hold_study(server(tmp_path), "s", ["maximize"], QUICK) as held:
        assert time.monotonic() - begin < QUICK.silence  # its process is seen to be dead: no waiting
        held.check()


def record_of_another_host(tmp_path: Path, **changes: Any) -> tuple[optuna.storages.BaseStorage, int]:
    storage = server(tmp_path)
    study_id = lock._study_id(storage, "s", ["maximize"])
    record = {
        "id": "x",
        "host": "elsewhere",
        "boot": "b",
        "pid": 1,
        "start": "1",
        "since": "2020",
        "expires": time.time(),
    }
    storage.set_study_user_attr(study_id, WRITER, record | changes)
    return storage, study_id


@pytest.mark.parametrize("minutes", [-10, 0, 10])
def test_another_host_is_taken_over_when_it_has_been_silent_whatever_its_clock_says(
    tmp_path: Path, minutes: int
) -> None:
    storage, _ = record_of_another_host(tmp_path, expires=time.time() + 60 * minutes)
    begin = time.monotonic()
    with lock._hold_study(storage, "s", ["maximize"], QUICK):
        assert time.monotonic() - begin >= QUICK.silence


def test_another_host_whose_hold_expired_long_ago_is_taken_over_without_waiting(tmp_path: Path) -> None:
    storage, _ = record_of_another_host(tmp_path, expires=time.time() - 1000)
    begin = time.monotonic()
    with lock._hold_study(storage, "s", ["maximize"], QUICK):
        assert time.monotonic() - begin < QUICK.silence


def test_another_host_that_refreshes_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The holder is a thread of this process that claims to run elsewhere, with a clock that is an hour slow.
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(lock.socket, "gethostname", lambda: "elsewhere")
        with lock._hold_study(server(tmp_path), "s", ["maximize"], QUICK):
            me = lock._me()
            elsewhere.setattr(lock, "_me", lambda: me)
            elsewhere.setattr(lock.socket, "gethostname", lambda: "here")
            rival = lock._hold_study(server(tmp_path), "s", ["maximize"], QUICK)
            with pytest.raises(StudyHeld, match="on elsewhere"), rival:
                pass


def test_a_process_that_has_the_number_of_a_dead_holder_is_not_taken_for_it(tmp_path: Path) -> None:
    me = lock._me()
    storage, _ = record_of_another_host(
        tmp_path, host=me.host, boot=me.boot, pid=me.pid, start="1", expires=time.time() + 1e6
    )
    with lock._hold_study(storage, "s", ["maximize"], QUICK) as held:
        assert held.check() is None


def test_of_two_that_come_at_once_the_last_to_write_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = server(tmp_path)
    write = lock._LeaseRecord.write

    def overwritten(record: lock._LeaseRecord) -> None:
        write(record)
        record_of_another_host(tmp_path)

    monkeypatch.setattr(lock._LeaseRecord, "write", overwritten)
    with pytest.raises(StudyHeld, match="at the same moment"), lock._hold_study(storage, "s", ["maximize"], QUICK):
        pass


def test_a_holder_that_was_taken_over_learns_it_and_leaves_the_other_alone(tmp_path: Path) -> None:
    storage = server(tmp_path)
    with lock._hold_study(storage, "s", ["maximize"], QUICK) as held:
        held.check()
        _, study_id = record_of_another_host(tmp_path)
        deadline = time.monotonic() + 20.0
        while held._taken_by is None and time.monotonic() < deadline:
            time.sleep(0.3)
            record_of_another_host(tmp_path)  # a refresh that had begun may have replaced it
        with pytest.raises(StudyHeld, match=r"now held by .* on elsewhere"):
            held.check()
    assert storage.get_study_user_attrs(study_id)[WRITER]["id"] == "x"


def test_letting_go_clears_the_record(tmp_path: Path) -> None:
    storage = server(tmp_path)
    with lock._hold_study(storage, "s", ["minimize"], QUICK):
        pass
    study = optuna.load_study(storage=storage, study_name="s")
    assert study.user_attrs[WRITER] is None
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
