"""One worker in this process, for small searches, for debugging, and where Ray is not installed."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator

from evomerge.cluster.executor import Executor, WorkerState
from evomerge.errors import StoppedByFailures
from evomerge.jobs import Failed, Job, Outcome, Progress
from evomerge.worker import Worker


class InlineExecutor:
    """Runs a job when its outcome is asked for. A job that ends the process ends the search: it can be resumed."""

    capacity = 1
    isolated = False

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._queue: deque[Job] = deque()
        self._events: Generator[Progress | Outcome, None, None] | None = None  # of the first job in the queue

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def next_event(self, timeout: float) -> Progress | Outcome | None:
        if not self._queue:
            return None
        if self._events is None:
            self._events = self._worker.events(self._queue[0])
        event = next(self._events)
        if isinstance(event, Progress):
            return event
        self._events = None
        self._queue.popleft()
        if isinstance(event.result, Failed) and event.result.crashed:
            # This process is the worker: it cannot be replaced, and would fail whatever comes next.
            raise StoppedByFailures(f"{event.result.reason}; run the same command again to go on in a new process")
        return event

    def cancel(self, key: str) -> None:
        if self._queue and self._queue[0].key == key:
            self._stop()
        self._queue = deque(job for job in self._queue if job.key != key)

    def workers(self) -> list[WorkerState]:
        job = self._queue[0].key if self._queue else None
        return [WorkerState(self._worker.name, "busy" if job else "idle", job)]

    def close(self) -> None:
        self._stop()
        self._queue.clear()

    def _stop(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None


def _proof(executor: InlineExecutor) -> Executor:
    return executor
