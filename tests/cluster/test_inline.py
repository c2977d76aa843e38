"""The executor in this process keeps the contract of executors."""

import time

from evomerge.cluster import Executor, InlineExecutor
from evomerge.evaluation.synthetic import SyntheticEvaluator
from evomerge.interjection import deadline
from evomerge.jobs import Failed, Scored, WorkerSetup
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


def test_what_ends_in_time_is_not_interrupted_afterwards():
    with deadline(0.2):
        began = time.monotonic()
    time.sleep(0.4)
    assert time.monotonic() - began >= 0.4  # the sleep was not cut short
