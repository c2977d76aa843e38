"""A pool of Ray actors, each one worker. The only file that imports ray."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from evomerge.cluster.executor import Executor, WorkerState
from evomerge.errors import InvalidInput, StoppedByFailures
from evomerge.jobs import Failed, Job, Outcome, Progress, Score, WorkerSetup
from evomerge.messages import last_line
from evomerge.worker import Worker

LOCAL = "local"

START_SECONDS = 600.0  # how long no worker at all may be placed and built before the search gives up
LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107  # bytes of the path of a Unix socket
_SOCKET = "ray/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # what Ray names its longest one like
_NODE_DIED = ("its node has died", "its owner has died")  # in Ray's reason of an actor's death
_LOSSES = (
    ray.exceptions.ActorUnavailableError,  # the network to it
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,  # an outcome that was on a node which died after it
)
MAX_DEATHS = 3  # deaths of one pool slot in a row, without an outcome between them, before the search gives up


class WorkerActor:
    """A worker in the process of a Ray actor."""

    def __init__(self, setup: WorkerSetup, name: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)  # two workers with two threads each on two cores run tenfold slower
        self._invalid: str | None = None
        try:
            self._worker = Worker(setup, name)
        except InvalidInput as error:  # an actor whose constructor raises tells only that it died
            self._invalid = str(error)

    def run(self, job: Job) -> Outcome:
        return self._worker.run(job)

    def events(self, job: Job) -> Iterator[Progress | Outcome]:
        yield from self._worker.events(job)

    def ready(self) -> str | None:
        """Return the reason why the worker's input is invalid; None where the worker has been built."""
        return self._invalid


@dataclass
class _Slot:
    """One place of the pool: the actor that fills it now, and what it is doing.

    `running` is the reference of an outcome or, for a job that streams, the generator of the references of its events.
    """

    name: str
    actor: Any
    starting: Any | None = None
    running: Any | None = None
    job: Job | None = None
    deadline: float = float("inf")
    deaths: int = 0
    restarts: int = 0


class RayExecutor:
    """Workers on a Ray cluster: one that is started for this run, or the one at `address`.

    With `gpus` None each worker gets a GPU where the cluster has any.

    A worker that dies is replaced by a new actor, and its job comes back as crashed or, where its node went away, as
    lost: retrying is the controller's decision. Actors never restart by themselves, and Ray never retries a method,
    since it would run a job twice that nobody asked for twice.
    """

    isolated = True

    def __init__(
        self,
        setup: WorkerSetup,
        *,
        count: int,
        cpus: int,
        gpus: float | None,
        resources: Mapping[str, float],
        timeout: float,
        address: str = LOCAL,
        worker_output: bool = False,
    ) -> None:
        self._folder = _short_folder() if address == LOCAL and not ray.is_initialized() else None
        self._started_ray = _connect(
            address,
            count=count,
            cpus=cpus,
            gpus=gpus or 0.0,
            resources=resources,
            worker_output=worker_output,
            folder=self._folder,
        )
        if gpus is None:
            gpus = float(ray.cluster_resources().get("GPU", 0) > 0)
        self._setup = replace(setup, device="cuda" if gpus else "cpu", gpus=gpus)
        self._options = {"num_cpus": cpus, "num_gpus": gpus, "resources": dict(resources), "max_restarts": 0}
        self._timeout = timeout
        self._threads = cpus
        self._give_up_starting = time.monotonic() + START_SECONDS
        self._queue: deque[Job] = deque()
        self._slots = [_Slot(f"worker-{index}", None) for index in range(count)]
        for slot in self._slots:
            self._start(slot)

    @property
    def capacity(self) -> int:
        return len(self._slots)

    def submit(self, job: Job) -> None:
        self._queue.append(job)
        self._dispatch()

    def next_event(self, timeout: float) -> Progress | Outcome | None:
        end = time.monotonic() + timeout
        while True:
            self._dispatch()
            watched = {ref: slot for slot in self._slots for ref in (slot.starting, slot.running) if ref is not None}
            wait = max(0.0, min(end, *(slot.deadline for slot in self._slots)) - time.monotonic())
            done, _ = ray.wait(list(watched), num_returns=1, timeout=wait) if watched else ([], [])
            for ref in done:
                event = self._collect(watched[ref], ref)
                if event is not None:
                    return event
            overdue = next((slot for slot in self._slots if slot.deadline <= time.monotonic()), None)
            if overdue is not None:
                return self._give_up(overdue)
            self._check_started()
            if time.monotonic() >= end:
                return None

    def _check_started(self) -> None:
        """Give up where not one worker could be placed: a cluster without the resources would wait for ever."""
        if any(slot.starting is None for slot in self._slots):
            self._give_up_starting = float("inf")
        elif time.monotonic() > self._give_up_starting:
            wanted = {name: amount for name, amount in self._options.items() if name != "max_restarts"}
            raise StoppedByFailures(
                f"no worker could be started in {START_SECONDS:g} s; each wants {wanted}, "
                f"the cluster has {ray.cluster_resources()}"
            )

    def cancel(self, key: str) -> None:
        self._queue = deque(job for job in self._queue if job.key != key)
        for slot in self._slots:
            if slot.job is not None and slot.job.key == key:
                self._replace(slot)

    def workers(self) -> list[WorkerState]:
        return [
            WorkerState(
                slot.name,
                "busy" if slot.job else "starting" if slot.starting is not None else "idle",
                slot.job.key if slot.job else None,
                slot.restarts,
            )
            for slot in self._slots
        ]

    def close(self) -> None:
        for slot in self._slots:
            ray.kill(slot.actor)
        self._slots.clear()
        if self._started_ray:
            ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, slot: _Slot) -> None:
        remote = ray.remote(WorkerActor).options(**self._options)
        slot.actor = remote.remote(self._setup, slot.name, self._threads)
        slot.starting = slot.actor.ready.remote()

    def _dispatch(self) -> None:
        while self._queue:
            free = [slot for slot in self._slots if slot.job is None and slot.starting is None]
            if not free:
                return
            job = self._queue.popleft()
            preferred = job.worker if isinstance(job, Score) else None
            slot = next((slot for slot in free if slot.name == preferred), free[0])
            slot.job = job
            if job.streams:
                slot.running = slot.actor.events.options(num_returns="streaming").remote(job)
            else:
                slot.running = slot.actor.run.remote(job)
            slot.deadline = time.monotonic() + self._timeout

    def _collect(self, slot: _Slot, ref: Any) -> Progress | Outcome | None:
        """The event behind a finished reference; None where a worker has merely started."""
        try:
            result = ray.get(next(ref) if isinstance(ref, ray.ObjectRefGenerator) else ref)
        except ray.exceptions.RayError as error:
            return self._replace_dead_worker(slot, error)
        if ref is slot.starting:
            if result is not None:
                raise InvalidInput(result)
            slot.starting = None
            return None
        if isinstance(result, Progress):
            slot.deadline = time.monotonic() + self._timeout  # it is alive
            return result
        slot.running = slot.job = None
        slot.deadline = float("inf")
        slot.deaths = 0
        assert isinstance(result, Outcome)
        if isinstance(result.result, Failed) and result.result.crashed:
            self._replace(slot)  # its device has failed, and would fail the next job too
        return result

    def _replace_dead_worker(self, slot: _Slot, error: Exception) -> Outcome | None:
        """Replace a dead worker; its job, if it had one, comes back as crashed or lost."""
        job = slot.job
        slot.deaths += 1
        reason = f"worker {slot.name} died: {last_line(error)}"
        if slot.deaths >= MAX_DEATHS and job is None:
            raise StoppedByFailures(f"{reason}; it could not be started {slot.deaths} times in a row")
        self._replace(slot)
        if job is None:
            return None
        lost = _is_loss(error)
        return _outcome(slot, job, Failed(reason, crashed=not lost, lost=lost), {})

    def _give_up(self, slot: _Slot) -> Outcome:
        job = slot.job
        assert job is not None  # only a running job has a deadline
        self._replace(slot)
        reason = f"no outcome after {self._timeout:g} s; the worker was ended (workers.timeout)"
        return _outcome(slot, job, Failed(reason), {"total": self._timeout})

    def _replace(self, slot: _Slot) -> None:
        ray.kill(slot.actor)
        slot.running = slot.job = None
        slot.deadline = float("inf")
        slot.restarts += 1
        self._start(slot)


def _is_loss(error: Exception) -> bool:
    """Whether a worker's machine went away, rather than its process, which the candidate may have ended."""
    if isinstance(error, ray.exceptions.ActorDiedError):
        return error.preempted or any(reason in str(error) for reason in _NODE_DIED)
    return isinstance(error, _LOSSES)


def _outcome(slot: _Slot, job: Job, failed: Failed, seconds: Mapping[str, float]) -> Outcome:
    """The outcome of a job whose worker sent none."""
    return Outcome(key=job.key, attempt=job.attempt, result=failed, seconds=seconds, worker=slot.name)


def _connect(
    address: str,
    *,
    count: int,
    cpus: int,
    gpus: float,
    resources: Mapping[str, float],
    worker_output: bool,
    folder: str | None,
) -> bool:
    """Join a cluster, or start one of the size that the workers need. True where this process started it.

    Args:
        folder: for the files and sockets of a cluster that is started, Ray's own choice without one.

    Raises:
        InvalidInput: no cluster answers, or none can be started; with the reason.
    """
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": worker_output, "logging_level": "error", "configure_logging": False}
    if address != LOCAL:
        try:
            ray.init(address=address, **quiet)
        except Exception as error:  # Ray raises many kinds, and none of them is about what we hold
            raise InvalidInput(f"no Ray cluster answers at {address!r}: {last_line(error)}") from None
        return True
    try:
        ray.init(
            address=LOCAL,
            num_cpus=count * cpus,
            num_gpus=int(-(-count * gpus // 1)),
            resources={name: amount * count for name, amount in resources.items()},
            include_dashboard=False,
            _temp_dir=folder,
            **quiet,
        )
    except Exception as error:
        ray.shutdown()  # what had been started
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise InvalidInput(
            f"Ray cannot be started: {type(error).__name__}: {last_line(error)}; mend that, or score in this "
            "process: --ray none"
        ) from error
    return True


def _short_folder() -> str | None:
    """A temporary folder for a local cluster where the system's one makes the paths of sockets too long.

    Raises:
        InvalidInput: there is none.
    """
    system = os.environ.get("TMPDIR") if sys.platform == "linux" else None
    usual = os.environ.get("RAY_TMPDIR") or system or "/tmp"
    if sys.platform == "win32" or _fits(usual):
        return None
    try:
        return tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    except OSError as error:
        raise InvalidInput(
            f"the temporary folder {usual!r} is too long for Ray, whose sockets may have paths of {LONGEST_SOCKET} "
            f"bytes, and /tmp cannot be used ({error.strerror}); set RAY_TMPDIR to a short folder, or use --ray none"
        ) from None


def _fits(folder: str) -> bool:
    return len(os.fsencode(Path(folder) / _SOCKET)) <= LONGEST_SOCKET


def _proof(executor: RayExecutor) -> Executor:
    return executor
