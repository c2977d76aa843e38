"""Processes of Ray that are killed under a running search: it goes on, or ends so that it can be resumed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from optuna.trial import TrialState

from evomerge.storage import attributes

pytestmark = pytest.mark.drill

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


# Process of Ray -> what only its command line has; that of others names the raylet, too.
OF_RAY = {"raylet": "raylet/raylet", "gcs_server": "gcs_server", "DashboardAgent": "DashboardAgent"}


def descendant(process: subprocess.Popen[str], title: str) -> psutil.Process:
    """The process below this one that has the title in its command line."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if title in " ".join(child.cmdline()):
            return child
    raise AssertionError(f"no {title} runs")


def kill_ray(drill, title: str, times: int = 1) -> set[int]:
    """Run a search of 60 trials on two workers, and kill this process of Ray while it is under way.

    Returns:
        The attempts that the trials took.
    """
    with drill.running("local") as process:
        for time_ in range(1, times + 1):
            drill.wait_for(5 * time_)
            descendant(process, title).kill()
        said = drill.end_of(process, 400)
    assert process.returncode == 0, said
    assert said.count("Ray was started again") == times
    trials = drill.count(60)
    assert [trial.number for trial in trials] == list(range(60))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert (drill.row.lost, drill.row.doubled) == (0, 0)
    return {trial.user_attrs[attributes.ATTEMPT] for trial in trials}


@pytest.mark.drill("Ray's process {title} killed")
@pytest.mark.parametrize("title", OF_RAY)
def test_a_local_ray_that_breaks_down_is_started_again_and_costs_no_attempt(tmp_path, make_drill: Callable, title):
    drill = make_drill(
        f"sqlite:///{tmp_path}/study.db",
        workers={"count": 2},
        evaluator={"name": "synthetic", "items": 40, "delay_seconds": 1.0},
    )
    assert kill_ray(drill, OF_RAY[title]) == {1}


@pytest.mark.drill("SIGTERM {seconds:g} s after the start")
@pytest.mark.parametrize("seconds", [1.0, 6.0, 12.0])
def test_a_signal_while_ray_starts_ends_the_run_and_all_its_processes(tmp_path, make_drill: Callable, seconds):
    drill = make_drill(f"sqlite:///{tmp_path}/study.db", workers={"count": 2})
    with drill.running("local") as process:
        time.sleep(seconds)
        children = psutil.Process(process.pid).children(recursive=True)
        said = drill.signal(process, signal.SIGTERM, 30)
    assert process.returncode == 3, said
    _, alive = psutil.wait_procs(children, timeout=30)  # Ray's agents look for the end of their parent now and then
    assert alive == []


@pytest.fixture
def open_cluster(tmp_path) -> Iterator[str]:
    """The address of a cluster without authentication, of one node."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short; Ray also notes there which cluster runs
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "HOME": str(tmp_path), "RAY_TMPDIR": folder}
    command = [*RAY, "start", "--head", "--num-cpus=2", "--port=26379", "--dashboard-port=28265", "--block"]
    with (tmp_path / "ray.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + 90
        while "Ray runtime started" not in (tmp_path / "ray.log").read_text() and time.monotonic() < end:
            time.sleep(0.5)
        processes = psutil.Process(head.pid).children(recursive=True)
        yield "127.0.0.1:26379"
        head.terminate()
        head.wait(60)
        psutil.wait_procs(processes, timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.drill("cluster lost, joined by its address")
def test_an_open_cluster_is_refused_unless_it_is_allowed_and_one_that_is_lost_ends_the_run(
    tmp_path, make_drill: Callable, open_cluster
) -> None:
    refused = make_drill(f"sqlite:///{tmp_path}/study.db", workers={"count": 1})
    with refused.running(open_cluster) as process:
        said = refused.end_of(process, 120)
    assert process.returncode == 2, said
    assert "allow_open_cluster" in said

    drill = make_drill(f"sqlite:///{tmp_path}/study.db", workers={"count": 1, "allow_open_cluster": True})
    with drill.running(open_cluster) as process:
        drill.wait_for(3)
        head = next(each for each in psutil.process_iter(["cmdline"]) if "--port=26379" in (each.info["cmdline"] or []))
        (gcs,) = [each for each in head.children(recursive=True) if "gcs_server" in " ".join(each.cmdline())]
        gcs.kill()
        said = drill.end_of(process, 90)
    assert process.returncode == 3, said
    assert "is lost" in said
    with drill.running(open_cluster) as process:
        said = drill.end_of(process, 90)
    assert process.returncode == 3, said
