"""One worker in this process, for small searches, for debugging, and where Ray is not installed."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator

from evomerge.cluster.executor import BUSY, IDLE, Executor, WorkerState
from evomerge.errors import Interrupted, StoppedByFailures
from evomerge.interjection import TimedOut, deadline
from evomerge.jobs import Failed, Job, Outcome, Progress
from evomerge.worker import Worker


class InlineExecutor:
    """Runs a job when its outcome is asked for. A job that ends the process ends the search: it can be resumed.

    Args:
        timeout: seconds without an event after which a job is given up. It is interrupted, and the worker built anew.
        on_hang: ends the process where a job cannot be interrupted because its compiled code does not return; receives
            the outcome. Without it that is waited for.
    """

    capacity = 1
    isolated = False

    def __init__(
        self, worker: Worker, *, timeout: float = math.inf, on_hang: Callable[[Outcome], None] | None = None
    ) -> None:
        self._worker = worker
        self._timeout = timeout
        self._on_hang = on_hang
        self._queue: deque[Job] = deque()
        self._events: Generator[Progress | Outcome, None, None] | None = None  # of the first job in the queue
        self._restarts = 0

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def next_event(self, timeout: float) -> Progress | Outcome | None:
        if not self._queue:
            return None
        if self._events is None:
            self._events = self._worker.events(self._queue[0])
        try:
            with deadline(self._timeout, None if self._on_hang is None else self._give_up_hanging):
                event = next(self._events)
        except TimedOut:
            return self._give_up()
        if isinstance(event, Progress):
            return event
        self._events = None
        self._queue.popleft()
        if isinstance(event.result, Failed) and event.result.away:
            # Nobody else works meanwhile: whoever starts the service again starts the run again, too.
            raise Interrupted(f"{event.result.reason}; run the same command again to go on")
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
        return [WorkerState(self._worker.name, BUSY if job else IDLE, job, self._restarts)]

    def close(self) -> None:
        self._stop()
        self._queue.clear()

    def _give_up(self) -> Outcome:
        self._events = None
        outcome = self._late(self._queue.popleft(), "the worker was built anew")
        self._worker = self._worker.renewed()
        self._restarts += 1
        return outcome

    def _give_up_hanging(self) -> None:
        assert self._on_hang is not None  # called only then
        self._on_hang(self._late(self._queue[0], "its compiled code does not return, and the process was ended"))

    def _late(self, job: Job, consequence: str) -> Outcome:
        reason = f"no outcome after {self._timeout:g} s; {consequence} (workers.timeout)"
        seconds = {"total": self._timeout}
        return Outcome(
            key=job.key, attempt=job.attempt, result=Failed(reason), seconds=seconds, worker=self._worker.name
        )

    def _stop(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None


def _proof(executor: InlineExecutor) -> Executor:
    return executor
