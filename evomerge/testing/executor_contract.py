"""The promises of an executor, as tests. A test module subclasses this and says how to open one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from evomerge.cluster.executor import Executor
from evomerge.jobs import Failed, Outcome, Progress, Score, Scored, WorkerSetup
from evomerge.packs.items import ItemBlock
from evomerge.recipe import ModelRef, Recipe

__all__ = ["ExecutorContract", "job", "setup"]

BASE = ModelRef("base", "/nowhere", revision=None, fingerprint="f")
RECIPE = Recipe(base=BASE, sources=(), rules=(), dtype="float32")

Open = Callable[..., Executor]


class ExecutorContract:
    """Subclasses give `open`. Workers score with the synthetic evaluator, so that no model is read.

    Args of the fixture `pool`: settings of that evaluator.
    """

    patience = 60.0  # seconds within which a worker has started and done a job

    def open(self, setup: WorkerSetup) -> Executor:
        """An executor whose workers are built from this setup."""
        raise NotImplementedError

    @pytest.fixture
    def pool(self) -> Iterator[Open]:
        opened: list[Executor] = []

        def build(**settings: Any) -> Executor:
            opened.append(self.open(setup(**settings)))
            return opened[-1]

        yield build
        for each in opened:
            each.close()

    def test_every_job_has_one_outcome_with_its_key_and_attempt(self, pool: Open) -> None:
        executor = pool()
        jobs = {f"job/{number}": number % 2 + 1 for number in range(executor.capacity + 3)}
        for key, attempt in jobs.items():
            executor.submit(job(key, attempt=attempt))
        outcomes = [self._outcome(executor) for _ in jobs]
        assert {outcome.key: outcome.attempt for outcome in outcomes} == jobs
        assert all(isinstance(outcome.result, Scored) for outcome in outcomes)
        assert all(outcome.seconds["total"] >= 0 and outcome.cost.items > 0 for outcome in outcomes)
        assert executor.next_event(0.0) is None

    def test_the_outcome_of_a_job_does_not_depend_on_the_worker_or_on_other_jobs(self, pool: Open) -> None:
        executor = pool()
        for number in range(3):
            executor.submit(job(f"job/{number}", x=0.3 if number != 1 else 0.8))
        found = {outcome.key: outcome.result for outcome in (self._outcome(executor) for _ in range(3))}
        scores = [result.scores.tasks for _, result in sorted(found.items()) if isinstance(result, Scored)]
        assert scores[0] == scores[2] != scores[1]

    def test_a_candidate_that_raises_is_a_failure_with_its_reason_and_the_next_job_is_scored(self, pool: Open) -> None:
        executor = pool(raising=0.5)
        for number in range(8):
            executor.submit(job(f"job/{number}", x=number / 8))
        results = [self._outcome(executor).result for _ in range(8)]
        failures = [result for result in results if isinstance(result, Failed)]
        assert 0 < len(failures) < len(results)
        assert all("planted failure" in failure.reason for failure in failures)
        assert not any(failure.by_machine or failure.invalid for failure in failures)

    def test_a_cancelled_job_has_no_outcome(self, pool: Open) -> None:
        executor = pool()
        for number in range(executor.capacity + 2):
            executor.submit(job(f"job/{number}"))
        last = f"job/{executor.capacity + 1}"
        executor.cancel(last)
        executor.cancel("unknown")
        keys = {self._outcome(executor).key for _ in range(executor.capacity + 1)}
        assert last not in keys
        assert executor.next_event(0.1) is None

    def test_the_workers_are_as_many_as_the_capacity_and_idle_where_nothing_is_to_be_done(self, pool: Open) -> None:
        executor = pool()
        executor.submit(job("job/0"))
        outcome = self._outcome(executor)
        workers = executor.workers()
        assert len(workers) == executor.capacity >= 1
        assert outcome.worker in {worker.name for worker in workers}
        assert all(worker.state in ("placing", "starting", "idle") and worker.job is None for worker in workers)

    def test_a_worker_that_is_preferred_and_free_does_the_job(self, pool: Open) -> None:
        executor = pool()
        executor.submit(job("job/0"))
        worker = self._outcome(executor).worker
        executor.submit(job("job/1", worker=worker))
        assert self._outcome(executor).worker == worker

    def _outcome(self, executor: Executor) -> Outcome:
        """The next outcome, whatever progress comes before it."""
        event = executor.next_event(self.patience)
        while isinstance(event, Progress):
            event = executor.next_event(self.patience)
        assert event is not None, f"no outcome within {self.patience:g} s"
        return event


def setup(**settings: Any) -> WorkerSetup:
    """A setup of workers with the synthetic evaluator."""
    return WorkerSetup(
        base=BASE,
        experts=(),
        dtype="float32",
        seed=0,
        evaluator="synthetic",
        settings={"items": 40, **settings},
        bounds={"x": (0.0, 1.0)},
    )


def job(key: str, x: float = 0.5, *, attempt: int = 1, worker: str | None = None) -> Score:
    """A candidate at a place in the box of the synthetic evaluator."""
    return Score(key=key, recipe=RECIPE, items=ItemBlock("search"), params={"x": x}, attempt=attempt, worker=worker)
