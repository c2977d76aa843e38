"""The Executor protocol: submit jobs, get their outcomes in the order in which they finish."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from evomerge.jobs import Job, Outcome, Progress

BACKING_OFF, QUARANTINED = "backing off", "quarantined"
PLACING, WAITING = "placing", "waiting for resources"
STARTING, IDLE, BUSY = "starting", "idle", "busy"
WORKER_STATES: Final = (PLACING, STARTING, IDLE, BUSY, BACKING_OFF, WAITING, QUARANTINED)


@dataclass(frozen=True)
class WorkerState:
    """A worker as `evomerge status` shows it."""

    name: str
    state: str  # one of `WORKER_STATES`
    job: str | None = None
    restarts: int = 0


class Executor(Protocol):
    """Runs jobs. Used by one thread, the controller's.

    Every submitted job gives exactly one outcome, unless it is cancelled: a job whose worker died gives a `Failed` that
    is `crashed`, one whose machine went away a `Failed` that is `lost`, and the worker is replaced. One that needs a
    service which is away gives a `Failed` that is `away`, and its worker stays. Jobs wait in the order of submission
    where no worker is free; one that prefers a worker gets it if that is free, and otherwise any. A job that streams,
    such as a training, also tells its `Progress`, any number of times before its outcome.
    """

    @property
    def capacity(self) -> int:
        """Number of jobs that can run at the same time."""

    @property
    def isolated(self) -> bool:
        """Whether jobs run in other processes than this one, which none of them can end."""

    def submit(self, job: Job) -> None: ...

    def next_event(self, timeout: float) -> Progress | Outcome | None:
        """The next progress or outcome, or None when none came within `timeout` seconds.

        Raises:
            StoppedByFailures: the workers cannot be started or kept alive.
            Interrupted: a job cannot be done at present, and there is no other worker to wait with.
        """

    def cancel(self, key: str) -> None:
        """Forget a job. Its outcome will not be delivered; a running one is stopped where that is possible."""

    def workers(self) -> list[WorkerState]: ...

    def close(self) -> None:
        """Stop the workers and free what was taken. Jobs in flight are lost."""
