"""Two controllers on one study, as real processes and threads."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError

from evomerge.clock import ManualClock
from evomerge.errors import Interrupted, InvalidInput, StudyHeld
from evomerge.leases import lock
from evomerge.leases.holding_process import Process
from evomerge.leases.journal_leases import lease_file
from evomerge.leases.lease import Lease, LeaseTimes, holder_in
from evomerge.leases.lock import hold, keep
from evomerge.leases.relational_lease import RelationalLease
from evomerge.storage import opening
from evomerge.storage.attributes import WRITER
from evomerge.storage.opening import open_storage, release
from evomerge.storage.optuna_internals import backend_of
from evomerge.storage.patience import StorageAway, StoragePatience

QUICK = LeaseTimes(refresh=0.1, silence=1.5, margin=0.5)
ELSEWHERE = Process(host="elsewhere", boot="b", pid=1, start="1")

HOLDER = """
import sys, time
from evomerge.leases.lock import hold
with hold(sys.argv[1], "s"):
    print("held", flush=True)
    time.sleep(60)
"""

# A controller on a network file system, on another machine, that writes until it may not.
WRITER_ELSEWHERE = """
import sys, time
from evomerge.errors import StudyHeld
from evomerge.leases import lease, lock
from evomerge.storage.opening import open_storage
from evomerge.leases.holding_process import Process
from evomerge.storage.patience import StoragePatience
times = lease.LeaseTimes(refresh=0.1, silence=1.5, margin=0.5)
patience = StoragePatience(seconds=30)  # a refresh may be under way at the moment of the continuation
lock.network_filesystem = lambda file: "nfs4"
lease.this_process = lambda: Process(host="elsewhere", boot="b", pid=1, start="1")
try:
    with lock.hold(sys.argv[1], "s", times=times, patience=patience) as held:
        storage = open_storage(sys.argv[1], single_writer=True)
        held.guard(storage)
        study = storage.create_new_study([], "s")
        print("held", flush=True)
        number = 0
        while True:
            if sys.argv[2] == "checked":
                held.check()
            storage.set_study_user_attr(study, "number", number)
            number += 1
            time.sleep(0.02)
except StudyHeld as error:
    print(f"{number} {error}", flush=True)
"""


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def start(processes: list[subprocess.Popen[str]], code: str, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    processes.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("url", ["sqlite:///{}/deep/study.db", "journal:///{}/deep/study.journal"])
def test_a_file_has_one_writer_until_it_is_killed(
    url: str, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    url = url.format(tmp_path)
    first = start(processes, HOLDER, url)
    with pytest.raises(StudyHeld, match=rf"process {first.pid} on .*, since 20") as error, hold(url, "s"):
        pass
    assert error.value.exit_code == 6
    first.kill()
    first.wait()
    with hold(url, "s") as held:  # at once
        held.check()
    with hold(url, "s"):
        pass


@pytest.mark.parametrize("url", ["sqlite:///{}/study.db", "journal:///{}/study.journal"])
def test_one_process_cannot_hold_a_file_twice(url: str, tmp_path: Path) -> None:
    url = url.format(tmp_path)
    with hold(url, "s"), pytest.raises(StudyHeld), hold(url, "other"):
        pass


@pytest.mark.parametrize("url", ["sqlite:///{}/study.db", "journal:///{}/study.journal"])
def test_a_holder_that_fails_lets_go(url: str, tmp_path: Path) -> None:
    url = url.format(tmp_path)
    with pytest.raises(ZeroDivisionError), hold(url, "s"):
        raise ZeroDivisionError
    with hold(url, "s"):
        pass


def no_flock(number: int) -> Callable[..., None]:
    def flock(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return flock


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_journal_without_file_locks_is_held_by_its_lease(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock.fcntl, "flock", no_flock(number))
    url = f"journal:///{tmp_path}/study.journal"
    with hold(url, "s") as held:
        held.check()
        with pytest.raises(StudyHeld, match=rf"study\.journal is held by the controller with process {os.getpid()}"):
            hold(url, "s").__enter__()
    with hold(url, "s"):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_sqlite_without_file_locks_is_refused_with_what_to_use_instead(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock.fcntl, "flock", no_flock(number))
    with (
        pytest.raises(InvalidInput, match=r"without locks .*use a local disk, a journal \(journal:///"),
        hold(f"sqlite:///{tmp_path}/study.db", "s"),
    ):
        pass


def test_another_trouble_with_the_lock_is_not_taken_for_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock.fcntl, "flock", no_flock(errno.EIO))
    with pytest.raises(InvalidInput, match="cannot lock"), hold(f"journal:///{tmp_path}/study.journal", "s"):
        pass


def test_on_a_network_file_system_no_file_lock_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_filesystem", lambda file: "nfs4")
    monkeypatch.setattr(lock.fcntl, "flock", no_flock(errno.EDEADLK))
    journal = tmp_path / "study.journal"
    with hold(f"journal:///{journal}", "s"):
        assert holder_in(lease_file(journal).read_text()) is not None
    assert holder_in(lease_file(journal).read_text()) is None


def stop_between_writes(process: subprocess.Popen[str], journal: Path) -> None:
    """Stop a process while it does not have Optuna's lock of the journal, which others wait for half a minute."""
    while True:
        os.kill(process.pid, signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        if not journal.with_name(f"{journal.name}.lock").is_symlink():
            return
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.005)


@pytest.mark.parametrize("checks", ["checked", "unchecked"])
def test_a_journal_on_a_network_file_system_is_taken_over_from_a_stopped_process_which_writes_nothing_more(
    checks: str, tmp_path: Path, processes: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "network_filesystem", lambda file: "nfs4")
    journal = tmp_path / "study.journal"
    other = start(processes, WRITER_ELSEWHERE, f"journal:///{journal}", checks)
    stop_between_writes(other, journal)
    with hold(f"journal:///{journal}", "s", times=QUICK) as held:
        storage = open_storage(f"journal:///{journal}", single_writer=True)
        held.guard(storage)
        study = storage.get_study_id_from_name("s")
        storage.set_study_user_attr(study, "ours", 1)
        before = journal.read_bytes()
        os.kill(other.pid, signal.SIGCONT)
        assert other.stdout is not None
        assert "now held by the controller with process" in other.stdout.readline()
        assert journal.read_bytes() == before
        held.check()


def server(tmp_path: Path) -> optuna.storages.BaseStorage:
    return open_storage(f"sqlite:///{tmp_path}/study.db", single_writer=True)


def lease_in(storage: optuna.storages.BaseStorage, process: Process | None = None) -> Lease:
    """The lease of a study as on a server, without a server."""
    backend = backend_of(storage)
    assert isinstance(backend, optuna.storages.RDBStorage)
    store = RelationalLease(backend, lock._study_id(storage, "s", ["minimize"]))
    return Lease(store, what="the study 's'", times=QUICK, process=process)


def test_a_study_in_a_database_is_taken_over_after_silence_and_given_back(tmp_path: Path) -> None:
    storage = server(tmp_path)
    assert lease_in(storage, ELSEWHERE).attempt() is None
    begin = time.monotonic()
    with keep(lease_in(storage)) as held:
        assert time.monotonic() - begin >= QUICK.silence
        held.check()
        assert held.held_since.startswith("20")
        with pytest.raises(StudyHeld, match=rf"process {os.getpid()} on"):
            lease_in(storage).attempt()
    study = optuna.load_study(storage=storage, study_name="s")
    assert study.user_attrs[WRITER] == {"number": 2}
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    release(storage)


def test_who_waits_for_a_silent_holder_is_told_so_once_and_can_be_stopped() -> None:
    store, clock, said = Recorded(), ManualClock(), []
    store.text = json.dumps({"id": "other", "pid": 7, "host": "elsewhere", "since": "2020"})
    lease = Lease(store, what="the study 's'", clock=clock)
    with keep(lease, patience=StoragePatience(say=said.append), clock=clock):
        assert said == [
            "waiting: the study 's' is held by the controller with process 7 on elsewhere, since 2020, which may have "
            "ended; it has 1 min 0 s to give a sign of life"
        ]

    def stop() -> None:
        raise Interrupted("stopped by a signal")

    store.text = json.dumps({"id": "another"})
    stopped = keep(Lease(store, what="s", clock=clock), patience=StoragePatience(check=stop), clock=clock)
    with pytest.raises(Interrupted):
        stopped.__enter__()


def fail_while_holding(store: Recorded, meanwhile: Callable[[ManualClock], None]) -> None:
    """A block whose thread cannot refresh in time, in which something happens, and which then ends by an error."""
    clock = ManualClock()
    with keep(Lease(store, what="s", times=LeaseTimes(refresh=1e6), clock=clock), clock=clock):
        meanwhile(clock)
        clock.advance(LeaseTimes().silence)
        raise UpdateFinishedTrialError


def test_an_error_of_a_study_that_was_taken_over_is_told_as_that() -> None:
    store = Recorded()

    def take_over(clock: ManualClock) -> None:
        store.text = None
        Lease(store, what="s", process=ELSEWHERE, clock=clock).attempt()

    with pytest.raises(StudyHeld, match="process 1 on elsewhere") as error:
        fail_while_holding(store, take_over)
    assert isinstance(error.value.__cause__, UpdateFinishedTrialError)


@pytest.mark.parametrize("trouble", [[], [ConnectionError("away")]])
def test_an_error_of_a_study_that_nobody_is_known_to_have_taken_over_stays_itself(trouble: list[BaseException]) -> None:
    store = Recorded()
    with pytest.raises(UpdateFinishedTrialError):
        fail_while_holding(store, lambda clock: store.errors.extend(trouble))


def test_another_machine_that_refreshes_is_not_taken_over(tmp_path: Path) -> None:
    storage, rivals = server(tmp_path), server(tmp_path)
    with (
        keep(lease_in(storage, ELSEWHERE)),
        pytest.raises(StudyHeld, match="on elsewhere"),
        keep(lease_in(rivals)),
    ):
        pass
    release(storage)
    release(rivals)


class Recorded:
    """A `LeaseStore` whose swaps are counted, and raise what a test says."""

    def __init__(self) -> None:
        self.text: str | None = None
        self.errors: list[BaseException] = []
        self.swapped = threading.Event()

    def read(self) -> str | None:
        return self.text

    def swap(self, old: str | None, new: str) -> bool:
        if self.errors:
            raise self.errors.pop()
        if self.text != old:
            return False
        self.text = new
        self.swapped.set()
        return True

    def guard(self, storage: Any, holder: str) -> None:
        raise AssertionError("no storage is opened here")


def test_the_thread_that_refreshes_survives_whatever_a_library_raises() -> None:
    store = Recorded()
    with keep(Lease(store, what="s", times=LeaseTimes(refresh=0.001))) as held:
        for error in (ConnectionError("redis"), Interrupted("ours"), RuntimeError(), SystemExit(1), MemoryError()):
            store.errors = [error] * 3
            store.swapped.clear()
            assert store.swapped.wait(30)
            assert store.errors == []
        held.check()


def test_one_that_is_taken_over_is_told_so_by_the_thread() -> None:
    store = Recorded()
    lease = Lease(store, what="s", times=LeaseTimes(refresh=0.001))
    with keep(lease) as held:
        store.text = json.dumps({"id": "other", "pid": 7, "host": "elsewhere", "since": "2020"})
        deadline = time.monotonic() + 30
        while lease._lost is None and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(StudyHeld, match="process 7 on elsewhere, since 2020"):
            held.check()
    assert holder_in(store.text) == "other"


def test_a_run_that_has_lost_the_storage_waits_and_ends_as_one_that_can_be_resumed() -> None:
    store, clock = Recorded(), ManualClock()
    patience = StoragePatience(seconds=600.0, clock=clock)
    lease = Lease(store, what="s", times=LeaseTimes(refresh=60.0, silence=1.0, margin=1.0))
    with keep(lease, patience=patience) as held:
        store.errors = [optuna.exceptions.StorageInternalError(), ConnectionError("redis")]
        lease._is_fresh = lambda: not store.errors  # type: ignore[method-assign]
        held.check()  # nobody has taken it over meanwhile
        assert store.errors == []
        store.errors = [optuna.exceptions.StorageInternalError()] * 1000
        with pytest.raises(StorageAway, match=r"lease of the study.*for 10 min 0 s") as raised:
            held.check()
        assert raised.value.exit_code == 3
        store.errors = []
        store.text = "{}"
        lease._is_fresh = lambda: False  # type: ignore[method-assign]
        with pytest.raises(StudyHeld):
            held.check()
