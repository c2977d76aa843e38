"""One worker in this process, for small searches, for debugging, and where Ray is not installed."""

from __future__ import annotations

from collections import deque

from evomerge.cluster.executor import Executor, WorkerState
from evomerge.worker import Job, Outcome, Worker


class InlineExecutor:
    """Runs a job when its outcome is asked for. A job that ends the process ends the search: it can be resumed."""

    capacity = 1

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._queue: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def next_event(self, timeout: float) -> Outcome | None:
        return self._worker.run(self._queue.popleft()) if self._queue else None

    def cancel(self, key: str) -> None:
        self._queue = deque(job for job in self._queue if job.key != key)

    def workers(self) -> list[WorkerState]:
        job = self._queue[0].key if self._queue else None
        return [WorkerState(self._worker.name, "busy" if job else "idle", job)]

    def close(self) -> None:
        self._queue.clear()


def _proof(executor: InlineExecutor) -> Executor:
    return executor
