"""One worker in this process, for small searches, for debugging, and where Ray is not installed."""

from __future__ import annotations

from collections import deque

from evomerge.cluster.executor import Executor, WorkerState
from evomerge.errors import StoppedByFailures
from evomerge.worker import Failed, Job, Outcome, Worker


class InlineExecutor:
    """Runs a job when its outcome is asked for. A job that ends the process ends the search: it can be resumed."""

    capacity = 1

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._queue: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def next_event(self, timeout: float) -> Outcome | None:
        if not self._queue:
            return None
        outcome = self._worker.run(self._queue.popleft())
        if isinstance(outcome.result, Failed) and outcome.result.infrastructural:
            # This process is the worker: it cannot be replaced, and would fail whatever comes next.
            raise StoppedByFailures(f"{outcome.result.reason}; run the same command again to go on in a new process")
        return outcome

    def cancel(self, key: str) -> None:
        self._queue = deque(job for job in self._queue if job.key != key)

    def workers(self) -> list[WorkerState]:
        job = self._queue[0].key if self._queue else None
        return [WorkerState(self._worker.name, "busy" if job else "idle", job)]

    def close(self) -> None:
        self._queue.clear()


def _proof(executor: InlineExecutor) -> Executor:
    return executor
