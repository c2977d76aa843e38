"""The executor in this process keeps the contract of executors."""

import time

import pytest

from evomerge.cluster import Executor, InlineExecutor
from evomerge.errors import Interrupted, ServiceAway
from evomerge.evaluation.synthetic import SyntheticEvaluator
from evomerge.interjection import deadline
from evomerge.jobs import Failed, Scored, WorkerSetup
from evomerge.object_store.remote_folder import ArtifactsAway
from evomerge.testing.executor_contract import ExecutorContract, job, setup
from evomerge.worker import Worker


class TestInlineExecutor(ExecutorContract):
    def open(self, setup: WorkerSetup) -> Executor:
        return InlineExecutor(Worker(setup, "inline"))


def test_a_job_without_an_outcome_is_given_up_and_the_next_one_has_a_new_worker(monkeypatch):
    score, scored_by = SyntheticEvaluator.score, []

    def late(self, candidate, items):
        scored_by.append(self)
        if candidate.key == "job/0":
            time.sleep(600)
        return score(self, candidate, items)

    monkeypatch.setattr(SyntheticEvaluator, "score", late)
    executor = InlineExecutor(Worker(setup(), "inline"), timeout=3)
    executor.submit(job("job/0"))
    executor.submit(job("job/1"))
    first, second = executor.next_event(0.0), executor.next_event(0.0)
    assert first.result == Failed("no outcome after 3 s; the worker was built anew (workers.timeout)")
    assert isinstance(second.result, Scored)
    assert scored_by[0] is not scored_by[1]
    assert [worker.restarts for worker in executor.workers()] == [1]


@pytest.mark.parametrize("error", [ServiceAway("the judge is away"), ArtifactsAway("the store is away")])
def test_a_service_that_is_away_interrupts_the_run_and_leaves_the_worker_as_it_is(monkeypatch, error):
    def away(self, candidate, items):
        raise error

    executor = InlineExecutor(Worker(setup(), "inline"))
    with monkeypatch.context() as patch:
        patch.setattr(SyntheticEvaluator, "score", away)
        executor.submit(job("job/0"))
        with pytest.raises(Interrupted, match="is away; run the same command again to go on"):
            executor.next_event(0.0)
    executor.submit(job("job/1"))
    assert isinstance(executor.next_event(0.0).result, Scored)


def test_what_ends_in_time_is_not_interrupted_afterwards():
    with deadline(0.2):
        began = time.monotonic()
    time.sleep(0.4)
    assert time.monotonic() - began >= 0.4  # the sleep was not cut short
