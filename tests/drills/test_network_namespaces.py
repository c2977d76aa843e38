"""A cluster of two hosts, which are network namespaces: a link that is cut, and a search that Ray runs as a job."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from optuna.trial import TrialState

from evomerge.leases.holder import holder_of
from evomerge.storage import attributes
from tests.drills.conftest import Drill

pytestmark = pytest.mark.drill

RAY = (sys.executable, "-m", "ray.scripts.scripts")
HEAD, NODE = "10.213.0.1", "10.213.0.2"
PORT, JOBS = 6379, 8265
START_SECONDS = 90.0


class Host:
    """A network namespace with one address, and the processes of Ray in it."""

    def __init__(self, name: str, address: str, log: Path) -> None:
        self.inside = ("ip", "netns", "exec", name)
        self.address = address
        self._log = log
        self._ray: subprocess.Popen[bytes] | None = None

    def start_ray(self, *arguments: str) -> None:
        """Start a node with one CPU, and return when it runs."""
        command = [*self.inside, *RAY, "start", *arguments, f"--node-ip-address={self.address}", "--num-cpus=1"]
        with self._log.open("wb") as log:
            self._ray = subprocess.Popen([*command, "--block"], stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in self._log.read_text():
            assert time.monotonic() < end, self._log.read_text()
            time.sleep(0.5)

    def wait_for_the_end_of_ray(self, seconds: float) -> None:
        assert self._ray is not None
        self._ray.wait(seconds)

    def end_ray(self) -> None:
        if self._ray is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._ray.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._ray.wait(60)


class Network:
    """Two hosts with a link between them."""

    def __init__(self, folder: Path) -> None:
        self._names = [f"evomerge-{letter}-{os.getpid()}" for letter in "ab"]
        self.hosts = [
            Host(name, address, folder / f"{name}.log") for name, address in zip(self._names, (HEAD, NODE), strict=True)
        ]

    def make(self) -> None:
        first, second = self._names
        for name in self._names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", first, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", second)
        for host, name in zip(self.hosts, self._names, strict=True):
            _ip("-n", name, "address", "add", f"{host.address}/24", "dev", "wire")
            _ip("-n", name, "link", "set", "wire", "up")

    def cut(self) -> None:
        _ip("-n", self._names[0], "link", "set", "wire", "down")

    def mend(self) -> None:
        _ip("-n", self._names[0], "link", "set", "wire", "up")

    def remove(self) -> None:
        for name in self._names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    """Two hosts with a node of Ray each, the first with the head. What Ray asks for as proof is in the environment."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs iproute2, and the right to make network namespaces (root)")
    ray_folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short, for the paths of sockets
    for key, value in {
        "HOME": str(tmp_path),
        "RAY_TMPDIR": ray_folder,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
    }.items():
        monkeypatch.setenv(key, value)
    made = Network(tmp_path)
    try:
        made.make()
        head, node = made.hosts
        head.start_ray("--head", f"--port={PORT}", f"--dashboard-host={HEAD}", f"--dashboard-port={JOBS}")
        node.start_ray(f"--address={HEAD}:{PORT}")
        yield made
    finally:
        for host in made.hosts:
            host.end_ray()
        made.remove()
        shutil.rmtree(ray_folder, ignore_errors=True)


@pytest.mark.drill("link to one of two nodes cut for 60 s")
def test_a_node_behind_a_cut_link_costs_what_it_had_and_another_one_joins(
    tmp_path: Path, make_drill: Callable[..., Drill], network: Network
) -> None:
    head, node = network.hosts
    drill = make_drill(
        f"sqlite:///{tmp_path}/study.db",
        workers={"count": 2, "min": 1},
        evaluator={"name": "synthetic", "items": 40, "delay_seconds": 3.0},
    )
    with drill.running(f"{HEAD}:{PORT}", inside=head.inside) as process:
        drill.wait_for(6)
        network.cut()
        time.sleep(60.0)
        assert process.poll() is None, drill.said
        network.mend()
        node.wait_for_the_end_of_ray(120.0)  # the head has given it up, and says so
        node.start_ray(f"--address={HEAD}:{PORT}")
        said = drill.end_of(process, 400)
    assert process.returncode == 0, said
    trials = drill.count(60)
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert (len(trials), drill.row.lost, drill.row.doubled) == (60, 0, 0)
    assert {trial.user_attrs[attributes.ATTEMPT] for trial in trials} == {1}


@pytest.mark.drill("`ray job stop` of a search, and the same job again")
def test_a_job_of_ray_that_is_stopped_ends_cleanly_and_goes_on(
    tmp_path: Path, make_drill: Callable[..., Drill], network: Network
) -> None:
    drill = make_drill(f"sqlite:///{tmp_path}/study.db", workers={"count": 2})
    _job(network, "submit", "--no-wait", "--submission-id=first", "--", *drill.command("auto"))
    drill.wait_for(10)
    stopped = _job(network, "stop", "first")
    assert holder_of(drill.url, "drill") is None, stopped + _job(network, "logs", "first")
    assert "succeeded" in _job(network, "submit", "--submission-id=second", "--", *drill.command("auto"))
    trials = drill.count(60)
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert (len(trials), drill.row.lost, drill.row.doubled) == (60, 0, 0)


def _job(network: Network, verb: str, *arguments: str) -> str:
    """The output of `ray job`."""
    command = [*network.hosts[0].inside, *RAY, "job", verb, f"--address=http://{HEAD}:{JOBS}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
