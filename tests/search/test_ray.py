"""Real Ray: workers that die are replaced, their trials scored again, and nothing of the cluster is kept."""

import os
import signal
import time
from dataclasses import replace

import optuna
import psutil
import pytest
import ray
from optuna.trial import TrialState

from evomerge import load_spec, run_search
from evomerge.clock import SYSTEM_CLOCK, Clock
from evomerge.cluster.ray_executor import RayExecutor
from evomerge.errors import InvalidInput, StoppedByFailures
from evomerge.jobs import Failed, Scored
from evomerge.search.run import Listener
from evomerge.storage import attributes
from evomerge.testing.executor_contract import ExecutorContract, job, setup


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A local cluster of four logical cores that the executors of these tests join."""
    home = tmp_path_factory.mktemp("ray-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
        yield
        ray.shutdown()


def worker_processes():
    """The processes of the actors, each with what it is doing in its title."""
    mine = psutil.Process().children(recursive=True)
    return [process for process in mine if "WorkerActor" in " ".join(process.cmdline())]


def free_cpus(expected, seconds=20.0):
    """The free logical cores, as soon as they are what is expected."""
    end = time.monotonic() + seconds
    while ray.available_resources().get("CPU", 0) != expected and time.monotonic() < end:
        time.sleep(0.2)
    return ray.available_resources().get("CPU", 0)


def trials_of(folder):
    return optuna.load_study(study_name="sim", storage=f"sqlite:///{folder}/runs/sim/study.db").trials


def test_n3_a_worker_killed_in_the_middle_of_a_trial_loses_nothing(cluster, write_spec, tmp_path):
    before = free_cpus(4)
    spec = load_spec(
        write_spec(
            evaluator={"name": "synthetic", "items": 40, "delay_seconds": 0.5},
            workers={"count": 2},
            budget={"trials": 8},
        )
    )
    killed = []

    def kill_once(status):
        busy = [process for process in worker_processes() if "events" in " ".join(process.cmdline())]
        if status.finished == 2 and not killed and busy:
            killed.append(busy[0].pid)
            os.kill(busy[0].pid, signal.SIGKILL)

    run_search(spec, ray="local", listener=Listener(on_status=kill_once))

    trials = trials_of(tmp_path)
    assert killed
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 8
    assert sorted(trial.user_attrs[attributes.TELL] for trial in trials) == list(range(8))
    assert [trial.user_attrs[attributes.ATTEMPT] for trial in trials].count(2) == 1
    assert free_cpus(before) == before


def test_n2_candidates_that_kill_their_worker_fail_and_the_others_finish(cluster, write_spec, tmp_path):
    spec = load_spec(
        write_spec(
            evaluator={"name": "synthetic", "items": 40, "exiting": 0.3},
            workers={"count": 2},
            budget={"trials": 6},
            sampler="random",
        )
    )
    run_search(spec, ray="local")
    trials = trials_of(tmp_path)
    failed = [trial for trial in trials if trial.state is TrialState.FAIL]
    assert len(trials) == 6
    assert 1 <= len(failed) <= 5
    assert all("died" in trial.user_attrs[attributes.FAILURE] for trial in failed)
    assert all(trial.user_attrs[attributes.ATTEMPT] == 3 for trial in failed)


def executor(timeout=60.0, count=1, clock=SYSTEM_CLOCK, **settings):
    return RayExecutor(setup(**settings), count=count, cpus=1, gpus=0, resources={}, timeout=timeout, clock=clock)


@pytest.mark.usefixtures("cluster")
class TestRayExecutor(ExecutorContract):
    def open(self, setup):
        return RayExecutor(setup, count=2, cpus=1, gpus=0, resources={}, timeout=60.0)


def test_a_candidate_that_hangs_is_given_up_and_its_worker_replaced(cluster):
    pool = executor(timeout=2.0, delay_seconds=60.0)
    try:
        pool.submit(job("a"))
        outcome = wait(pool)
        assert isinstance(outcome.result, Failed)
        assert "no outcome after 2 s" in outcome.result.reason
        assert not outcome.result.crashed
        assert not outcome.result.lost
        assert pool.workers()[0].restarts == 1
    finally:
        pool.close()


class Ahead(Clock):
    """The system's clock, set forward by a test as if this process had been stopped for so long."""

    seconds = 0.0

    def monotonic(self):
        return super().monotonic() + self.seconds


def test_jobs_that_ended_while_nobody_looked_are_not_overdue_and_one_that_is_cancelled_gives_none(cluster):
    clock = Ahead()
    pool = executor(count=2, clock=clock)
    try:
        wait_for_workers(pool)
        for key in ("a", "b"):
            pool.submit(job(key))
        working = list(pool._references.values())
        assert len(ray.wait(working, num_returns=2, timeout=60.0)[0]) == 2
        clock.seconds = 600.0
        outcome = pool.next_event(0.0)
        assert isinstance(outcome.result, Scored)
        pool.cancel("b" if outcome.key == "a" else "a")
        assert pool.next_event(1.0) is None
    finally:
        pool.close()


SHORT, LONG = 0.25, 0.8  # places in the box, scored in 0.1 s and 3.4 s with the delays below


def test_outcomes_come_in_the_order_in_which_jobs_finish_and_a_cancelled_job_gives_none(cluster):
    pool = executor(count=2, delay_seconds=0.6, delay_spread=1.0)
    try:
        wait_for_workers(pool)
        pool.submit(job("long", x=LONG))
        pool.submit(job("short", x=SHORT))
        pool.submit(job("cancelled"))
        pool.cancel("cancelled")
        assert [wait(pool).key, wait(pool).key] == ["short", "long"]
        assert pool.next_event(1.0) is None
        assert [worker.state for worker in pool.workers()] == ["idle", "idle"]
    finally:
        pool.close()


def test_workers_that_cannot_be_built_from_the_input_name_what_is_wrong_with_it(cluster):
    pool = executor(itmes=1)
    try:
        pool.submit(job("a"))
        with pytest.raises(InvalidInput, match="did you mean 'items'"):
            wait(pool)
    finally:
        pool.close()


def test_workers_that_die_while_they_are_built_stop_the_search(cluster):
    broken = replace(setup(), bounds=5)  # no mapping: a fault that nobody foresaw
    pool = RayExecutor(broken, count=1, cpus=1, gpus=0, resources={}, timeout=60.0)
    try:
        pool.submit(job("a"))
        with pytest.raises(StoppedByFailures, match="could not be started"):
            wait(pool)
    finally:
        pool.close()


def test_n31_a_job_is_kilobytes(cluster):
    assert len(ray.cloudpickle.dumps(job("a"))) < 4096


def wait_for_workers(pool):
    """Returns when every worker has been built."""
    while any(worker.state != "idle" for worker in pool.workers()):
        assert pool.next_event(0.1) is None


def wait(pool, seconds=60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        outcome = pool.next_event(1.0)
        if outcome is not None:
            assert isinstance(outcome.result, Scored | Failed)
            return outcome
    pytest.fail("no outcome came")
