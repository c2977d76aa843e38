"""Several controllers on one study in real storages: stopped and continued, at the same moment, without the server."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from drill_rows import Row
from optuna.trial import FrozenTrial
from servers import without_studies

from evomerge.errors import Interrupted, StudyHeld
from evomerge.leases import lease, lock, relational_lease
from evomerge.leases.holder import holder_of
from evomerge.leases.holding_process import Process
from evomerge.leases.lock import hold
from evomerge.leases.relational_lease import RelationalLease
from evomerge.storage.opening import open_storage, release
from evomerge.storage.optuna_internals import backend_of

pytestmark = pytest.mark.drill

QUICK = lease.LeaseTimes(refresh=0.1, silence=3.0, margin=1.0)
ELSEWHERE = Process(host="elsewhere", boot="b", pid=1, start="1")

# A controller of another machine, on a journal as if on a network file system, that writes as fast as it can.
CONTROLLER = """
import sys
import optuna
from evomerge.errors import EvomergeError
from evomerge.leases import lease, lock, relational_lease
from evomerge.storage.opening import in_transaction, open_storage
from evomerge.storage.patience import StoragePatience
from evomerge.leases.holding_process import Process

url, host = sys.argv[1:]
lock.network_filesystem = lambda file: "nfs4"
lease.this_process = lambda: Process(host=host, boot="b", pid=1, start="1")
relational_lease._IDLE_LIMITS = {
    "postgresql": "SET idle_in_transaction_session_timeout = '2s'",
    "mysql": "SET SESSION wait_timeout = 2",
}
optuna.logging.set_verbosity(optuna.logging.ERROR)
times, patience = lease.LeaseTimes(refresh=0.1, silence=3.0, margin=1.0), StoragePatience(seconds=60.0)

def trial():
    asked = study.ask({"x": optuna.distributions.FloatDistribution(0.0, 1.0)})
    for number in range(5):
        asked.set_user_attr(f"a{number}", number)
    study.tell(asked, 1.0)

try:
    with lock.hold(url, "drill", times=times, patience=patience) as held:
        storage = open_storage(url, single_writer=True, patience=patience)
        held.guard(storage)
        study = optuna.create_study(storage=storage, study_name="drill", load_if_exists=True)
        print("held", flush=True)
        while True:
            in_transaction(storage, trial)
            study.set_user_attr("single", study.user_attrs.get("single", 0) + 1)
except EvomergeError as error:
    print(error.exit_code, error, flush=True)
    sys.exit(error.exit_code)
except Exception as error:
    print("unexpected", type(error).__name__, error, flush=True)
    sys.exit(1)
"""

# The command line on another machine, with a lease that is taken over sooner.
SEARCH = """
import runpy, sys
from evomerge.leases import lease, lock
from evomerge.leases.holding_process import Process

host, spec = sys.argv[1:]
times = lease.LeaseTimes(refresh=0.5, silence=8.0, margin=2.0)
lease.LeaseTimes = lambda: times
lease.this_process = lambda: Process(host=host, boot="b", pid=1, start="1")
lock.network_filesystem = lambda file: "nfs4"
sys.argv = ["evomerge", "run", spec, "--ray", "none", "--json"]
runpy.run_module("evomerge.cli", run_name="__main__")
"""


class Controllers:
    """Controllers of other machines, as processes."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.started: list[subprocess.Popen[str]] = []

    def start(self, host: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CONTROLLER, self._url, host]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.started.append(process)
        return process

    def end(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture(params=["postgres", "mariadb", "redis", "journal"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "journal":
        return f"journal:///{tmp_path}/study.journal"
    return without_studies(request.getfixturevalue(request.param))


@pytest.fixture
def controllers(url: str) -> Iterator[Controllers]:
    made = Controllers(url)
    yield made
    made.end()


@pytest.fixture(autouse=True)
def files_are_on_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "network_filesystem", lambda file: "nfs4")


def contents(url: str) -> Any:
    storage = open_storage(url)
    study = optuna.load_study(storage=storage, study_name="drill")
    found = [(trial.number, trial.state, trial.params, trial.user_attrs) for trial in study.get_trials()]
    attributes = {key: value for key, value in study.user_attrs.items() if key != "evomerge:writer"}
    release(storage)
    return found, attributes


@pytest.mark.drill("controller stopped, taken over, continued")
@pytest.mark.parametrize("seed", range(5))
def test_after_a_stop_and_a_takeover_not_one_write_of_the_former_holder_is_stored(
    url: str, controllers: Controllers, seed: int, row: Row
) -> None:
    former = controllers.start("elsewhere")
    assert line_of(former) == "held"
    time.sleep(random.Random(seed).uniform(0.0, 1.0))
    os.kill(former.pid, signal.SIGSTOP)
    with hold(url, "drill", times=QUICK) as held:
        before = contents(url)
        os.kill(former.pid, signal.SIGCONT)
        assert line_of(former).startswith("6 ")
        row.exit_codes.append(former.wait())
        assert row.exit_codes == [6]
        after = contents(url)
        row.count([number for number, *_ in before[0]], [number for number, *_ in after[0]])
        assert after == before
        held.check()
        holder = holder_of(url, "drill")
        assert holder is not None
        assert (holder.alive, holder.process, holder.since) == ("yes", os.getpid(), held.held_since)
    assert holder_of(url, "drill") is None


@pytest.mark.drill("controller of a whole search stopped, taken over, continued")
def test_a_search_that_was_stopped_is_finished_by_another_machine_as_if_nothing_had_happened(
    url: str, make_drill: Callable[..., Any], undisturbed: list[FrozenTrial]
) -> None:
    drill = make_drill(url)
    log, command = drill.spec.parent / "log", [sys.executable, "-c", SEARCH]
    with log.open("w") as file:
        former = subprocess.Popen([*command, "elsewhere", str(drill.spec)], cwd=log.parent, stdout=file, stderr=file)
    try:
        drill.wait_for(10)
        os.kill(former.pid, signal.SIGSTOP)
        latter = subprocess.run(
            [*command, "here", str(drill.spec)], cwd=log.parent, check=False, capture_output=True, text=True
        )
        os.kill(former.pid, signal.SIGCONT)
        drill.row.exit_codes += [latter.returncode, former.wait()]
    finally:
        former.kill()
        former.wait()
    assert drill.row.exit_codes == [0, 6], latter.stderr + log.read_text()
    drill.check_whole(undisturbed)


@pytest.mark.drill("four controllers at once")
def test_of_four_that_come_at_once_one_has_it(url: str, controllers: Controllers) -> None:
    said = [line_of(process) for process in [controllers.start(host) for host in "abcd"]]
    assert sorted(each[:2] for each in said) == ["6 ", "6 ", "6 ", "he"]


@pytest.mark.drill("clock of another controller 16 minutes ahead")
def test_a_machine_whose_clock_is_ahead_takes_no_living_study(
    url: str, controllers: Controllers, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert line_of(controllers.start("elsewhere")) == "held"
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 16 * 60)
    with pytest.raises(StudyHeld, match="on elsewhere"), hold(url, "drill", times=QUICK):
        pass


@pytest.mark.drill("server {trouble} under a holder of the lease")
@pytest.mark.parametrize("trouble", ["restarted", "frozen"])
@pytest.mark.parametrize("name", ["postgres", "mariadb", "redis"])
def test_a_holder_whose_server_was_away_writes_no_more_until_it_is_sure_again(
    request: pytest.FixtureRequest, name: str, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = request.getfixturevalue(name)
    away, back = (server.kill, server.start) if trouble == "restarted" else (server.freeze, server.thaw)
    with hold(server.url, "drill", times=QUICK) as held:
        away()
        try:
            until(lambda: not held._lease._is_fresh())
            with pytest.raises(Interrupted) as raised:
                held.check()
            assert raised.value.exit_code == 3
        finally:
            back()
        until(held._lease._is_fresh)  # the thread has survived
        held.check()
        monkeypatch.setattr(lease, "this_process", lambda: ELSEWHERE)
        with pytest.raises(StudyHeld), hold(server.url, "drill", times=QUICK):
            pass


@pytest.mark.drill("controller stopped inside its commit")
@pytest.mark.parametrize("name", ["postgres", "mariadb"])
def test_one_that_was_stopped_in_its_commit_does_not_keep_the_study_for_ever(
    request: pytest.FixtureRequest, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"postgresql": "SET lock_timeout = '1s'", "mysql": "SET SESSION innodb_lock_wait_timeout = 1"}
    monkeypatch.setattr(relational_lease, "_ROW_WAITS", limits)
    storage = open_storage(request.getfixturevalue(name).url)
    backend = backend_of(storage)
    assert isinstance(backend, optuna.storages.RDBStorage)
    store = RelationalLease(backend, lock._study_id(storage, "drill", ["maximize"]))
    held = lease.Lease(store, what="the study 'drill'", process=ELSEWHERE, times=QUICK)
    assert held.attempt() is None
    with backend.engine.begin() as stopped:
        stopped.execute(store._select().with_for_update(read=True))
        assert store.swap(store.read(), '{"id": "other"}') is False
    assert store.swap(store.read(), '{"id": "other"}') is True
    storage.delete_study(lock._study_id(storage, "drill", []))
    release(storage)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60.0
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
