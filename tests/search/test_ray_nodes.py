"""Ray with several nodes: they come and go, and cost only what their workers were doing."""

import time
from dataclasses import replace

import pytest
import ray
from ray.cluster_utils import Cluster

from evomerge.cluster import pool as policy
from evomerge.cluster.ray_executor import RayExecutor
from evomerge.jobs import Outcome, Scored
from evomerge.testing.executor_contract import job, setup

SLOT = {"num_cpus": 1, "resources": {"gpu_slot": 1}}  # a node with room for one worker


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A head without room for workers, and two nodes with room for one each."""
    for name, value in {"HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}.items():
        monkeypatch.setenv(name, value)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.nodes = [made.add_node(**SLOT) for _ in range(2)]
    ray.init(address=made.address, log_to_driver=False, logging_level="error")
    yield made
    ray.shutdown()
    made.shutdown()


def until(pool, wanted, seconds=90.0):
    """The outcomes that come until the pool's workers are in the states that are wanted."""
    outcomes, end = [], time.monotonic() + seconds
    while not wanted(sorted(worker.state for worker in pool.workers())):
        assert time.monotonic() < end, pool.workers()
        event = pool.next_event(0.2)
        if isinstance(event, Outcome):
            outcomes.append(event)
    return outcomes


def outcomes_of(pool, count):
    found = []
    while len(found) < count:
        event = pool.next_event(60.0)
        assert event is not None
        found.append(event)
    return {outcome.key: outcome.result for outcome in found}


def test_nodes_that_leave_cost_their_running_jobs_alone_and_nodes_that_join_add_workers(cluster):
    pool = RayExecutor(
        setup(delay_seconds=8.0), count=3, cpus=1, gpus=0, resources={"gpu_slot": 1}, timeout=60.0, fewest=1
    )
    try:
        until(pool, lambda states: states == ["idle", "idle", "placing"])
        pool.submit(job("a"))
        pool.submit(job("b"))
        cluster.remove_node(cluster.nodes[0], allow_graceful=False)
        results = outcomes_of(pool, 2)
        lost = [key for key, result in results.items() if not isinstance(result, Scored)]
        assert len(lost) == 1
        assert results[lost[0]].lost
        assert not results[lost[0]].crashed

        for _ in range(2):
            cluster.add_node(**SLOT)
        until(pool, lambda states: states == ["idle", "idle", "idle"])
        for key in ("c", "d", "e"):
            pool.submit(job(key))
        assert all(isinstance(result, Scored) for result in outcomes_of(pool, 3).values())
    finally:
        pool.close()


def test_a_node_has_workers_again_when_its_quarantine_is_over(cluster, monkeypatch):
    monkeypatch.setattr(policy, "FIRST_QUARANTINE", 10.0)
    pool = RayExecutor(setup(), count=2, cpus=1, gpus=0, resources={"gpu_slot": 1}, timeout=60.0)
    try:
        for number in range(policy.MAX_DEATHS):
            until(pool, lambda states: states == ["idle", "idle"])
            ray.kill(pool._actors["worker-1"])
            pool.submit(replace(job(f"job/{number}"), worker="worker-1"))
            (result,) = outcomes_of(pool, 1).values()
            assert result.crashed
        assert pool._pool.quarantined_nodes
        until(pool, lambda states: states == ["idle", "placing"])
        until(pool, lambda states: states == ["idle", "idle"])
    finally:
        pool.close()
