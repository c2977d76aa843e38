"""The executor on Ray: a pool of actors, each one worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from secrets import token_hex
from typing import Any, Final

import ray
import ray.exceptions

from evomerge.bank.shared_tensors import remove_left
from evomerge.clock import SYSTEM_CLOCK, Clock
from evomerge.cluster.executor import IDLE, Executor, WorkerState
from evomerge.cluster.pool import Pool, Slot
from evomerge.cluster.ray_executor.actor import WorkerActor
from evomerge.cluster.ray_executor.cluster import LOCAL, Cluster, Size
from evomerge.errors import InvalidInput
from evomerge.jobs import Failed, Job, Outcome, Progress, WorkerSetup
from evomerge.messages import last_line

POLL_SECONDS: Final = 1.0  # between two looks at deadlines and at the cluster
SILENT_SECONDS: Final = 0.1  # between two looks at a cluster that does not answer, however much is due
GET_SECONDS: Final = 120.0  # in which an outcome that is there comes here
RELEASE_SECONDS: Final = 2.0  # in which idle workers give up what they share
_NODE_DIED: Final = ("its node has died", "its owner has died")  # in Ray's reason of an actor's death
_LOSSES: Final = (
    ray.exceptions.ActorUnavailableError,  # the network to it
    ray.exceptions.GetTimeoutError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,  # an outcome that was on a node which died after it
)


class RayExecutor:
    """Workers on a Ray cluster: one that is started for this run, or the one at `address`.

    There are as many as find a place, up to `count`: nodes that join the cluster get workers, and of one that leaves
    only what its workers were doing is lost. With `gpus` None each worker gets a GPU where the cluster has any.

    A worker is one actor, and Ray places an actor on one node with all that it wants, several GPUs too: a placement
    group would add nothing.

    A worker that dies is replaced by a new actor, and its job comes back as crashed or, where its node went away, as
    lost: retrying is the controller's decision. Actors never restart by themselves, and Ray never retries a method,
    since it would run a job twice that nobody asked for twice.

    Args:
        fewest: workers below which the run does not go on.
        timeout: seconds in which a job shows a sign of life.
        allow_open: join a cluster that takes jobs from anyone.
        secrets: no process that is started here gets an environment variable with one of them.
        say: told of what is waited for and of what was started again.
        check: called while Ray starts; may raise.
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
        fewest: int = 1,
        address: str = LOCAL,
        worker_output: bool = False,
        allow_open: bool = False,
        secrets: Collection[str] = (),
        say: Callable[[str], None] = lambda text: None,
        check: Callable[[], None] = lambda: None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        size = Size(count=count, cpus=cpus, gpus=gpus or 0.0, resources=resources)
        self._cluster = Cluster(
            address, size, worker_output=worker_output, allow_open=allow_open, secrets=secrets, check=check
        )
        if self._cluster.is_exposed:
            say("warning: Ray was imported before evomerge: its local cluster listens on all interfaces, with a token")
        if gpus is None:
            gpus = float(self._cluster.view.total().get("GPU", 0) > 0)
        self._setup = replace(
            setup, device="cuda" if gpus else "cpu", gpus=gpus, shared=token_hex(16) if count > 1 else None
        )
        self._wanted = {"CPU": cpus, "GPU": gpus, **resources}
        self._options = {"num_cpus": cpus, "num_gpus": gpus, "resources": dict(resources), "max_restarts": 0}
        self._threads = cpus
        self._say = say
        self._clock = clock
        self._pool = Pool(count, timeout=timeout, fewest=fewest, describe=self._describe, clock=clock)
        self._said_waiting = 0
        self._actors: dict[str, Any] = {}  # by name of the slot
        self._references: dict[str, Any] = {}  # of what each slot does: one, or the generator of those of its events
        self._ready: deque[Progress | Outcome] = deque()
        try:
            self._act()
        except BaseException:
            self.close()
            raise

    @property
    def capacity(self) -> int:
        return self._pool.capacity

    def submit(self, job: Job) -> None:
        self._pool.submit(job)
        self._act()

    def next_event(self, timeout: float) -> Progress | Outcome | None:
        end = self._clock.monotonic() + timeout
        while True:
            self._act()
            if self._ready:
                return self._ready.popleft()
            left = end - self._clock.monotonic()
            event = self._wait(max(0.0, min(left, POLL_SECONDS, self._seconds_to_act())))
            if event is not None or left <= 0:
                return event

    def _seconds_to_act(self) -> float:
        """Seconds until something can be done. While the cluster does not answer no worker is started, also where one
        is due."""
        seconds = self._pool.seconds_to_act()
        return seconds if self._cluster.answers else max(seconds, SILENT_SECONDS)

    def cancel(self, key: str) -> None:
        self._ready = deque(event for event in self._ready if event.key != key)
        slot = self._pool.cancel(key)
        if slot is not None:
            self._end(slot)

    def workers(self) -> list[WorkerState]:
        return self._pool.states()

    def close(self) -> None:
        if self._setup.shared is not None and self._cluster.answers:
            self._release()
        for slot in self._pool.slots:
            self._end(slot)
        self._cluster.close()
        if self._setup.shared is not None:
            remove_left()  # of workers on this machine that were busy

    def _release(self) -> None:
        """Have the workers give up what they share: a process that is killed removes nothing."""
        idle = [slot for slot in self._pool.slots if slot.state == IDLE]
        for slot in self._pool.slots:
            if slot not in idle:
                self._end(slot)
        released = [self._actors[slot.name].release.remote() for slot in idle]
        if released:
            ray.wait(released, num_returns=len(released), timeout=RELEASE_SECONDS)

    def _act(self) -> None:
        """Do what is due: mend the cluster, end what is overdue, start workers, give them jobs."""
        trouble = self._cluster.trouble()
        if trouble is not None:
            self._mend(trouble)
        if self._pool.seconds_to_act() <= 0.0:
            self._collect_waiting()
        for slot, outcome in self._pool.end_overdue():
            self._end(slot)
            if outcome is not None:
                self._ready.append(outcome)
        self._pool.check()
        if self._cluster.answers:
            for slot in self._pool.start_due():
                self._start(slot)
        for slot, job in self._pool.assign():
            self._send(slot, job)
        self._tell_waiting()

    def _collect_waiting(self) -> None:
        """Collect all that has ended: this process may have been stopped, or have waited for its storage, so that it is
        not overdue but unread."""
        watched = {self._references[slot.name]: slot for slot in self._pool.slots if slot.name in self._references}
        if not watched:
            return
        done, _ = ray.wait(list(watched), num_returns=len(watched), timeout=0)
        for reference in done:
            event = self._collect(watched[reference], reference)
            if event is not None:
                self._ready.append(event)

    def _mend(self, trouble: str) -> None:
        self._ready.extend(self._pool.lose_all(trouble))
        self._actors.clear()
        self._references.clear()
        self._cluster.restart(trouble)
        self._say(f"warning: Ray was started again: {trouble}")

    def _tell_waiting(self) -> None:
        waiting = self._pool.waiting
        if waiting > self._said_waiting:
            count = len(self._pool.slots)
            self._say(f"waiting for resources: {waiting} of {count} workers have no place yet; {self._describe()}")
        self._said_waiting = waiting

    def _describe(self) -> str:
        return self._cluster.view.compared(self._wanted)

    def _start(self, slot: Slot) -> None:
        self._end(slot)  # one without a place, which would wait for another node than this one may have
        bad = ",".join(sorted(slot.avoided))
        elsewhere = {"label_selector": {"ray.io/node-id": f"!in({bad})"}} if bad else {}
        actor = ray.remote(WorkerActor).options(**self._options, **elsewhere)
        self._actors[slot.name] = actor.remote(self._setup, slot.name, self._threads)
        self._references[slot.name] = self._actors[slot.name].place.remote()

    def _neighbours(self, node: str) -> int:
        """Workers for which a node has room, as far as there are so many."""
        return max(1, min(len(self._pool.slots), self._cluster.view.room(node, self._wanted)))

    def _send(self, slot: Slot, job: Job) -> None:
        actor = self._actors[slot.name]
        if job.streams:
            self._references[slot.name] = actor.events.options(num_returns="streaming").remote(job)
        else:
            self._references[slot.name] = actor.run.remote(job)

    def _wait(self, seconds: float) -> Progress | Outcome | None:
        """The next event within so many seconds. None also where a worker has merely been started."""
        watched = {self._references[slot.name]: slot for slot in self._pool.slots if slot.name in self._references}
        if not watched:
            self._clock.sleep(seconds)
            return None
        done, _ = ray.wait(list(watched), num_returns=1, timeout=seconds)
        return self._collect(watched[done[0]], done[0]) if done else None

    def _collect(self, slot: Slot, reference: Any) -> Progress | Outcome | None:
        """The event behind a finished reference; None where it says how far the start of a worker is."""
        try:
            streams = isinstance(reference, ray.ObjectRefGenerator)
            result = ray.get(next(reference) if streams else reference, timeout=GET_SECONDS)
        except ray.exceptions.RayError as error:
            outcome = self._pool.die(slot, last_line(error), lost=_is_loss(error))
            self._end(slot)
            return outcome
        if slot.job is None:
            self._go_on_starting(slot, result)
            return None
        if isinstance(result, Progress):
            self._pool.extend(slot)
            return result
        assert isinstance(result, Outcome)
        return self._finish(slot, result)

    def _go_on_starting(self, slot: Slot, result: str | None) -> None:
        if slot.node is None:
            self._pool.place(slot, str(result))
            self._references[slot.name] = self._actors[slot.name].build.remote(self._neighbours(str(result)))
            return
        if result is not None:
            raise InvalidInput(result)
        del self._references[slot.name]
        self._pool.make_ready(slot)

    def _finish(self, slot: Slot, outcome: Outcome) -> Outcome:
        del self._references[slot.name]
        self._pool.finish(slot, outcome)
        if isinstance(outcome.result, Failed) and outcome.result.crashed:
            self._end(slot)  # its device has failed, and would fail the next job too
        else:
            self._cluster.prove()
        return outcome

    def _end(self, slot: Slot) -> None:
        """End the process of a slot's worker, if there is any."""
        self._references.pop(slot.name, None)
        actor = self._actors.pop(slot.name, None)
        if actor is not None:
            with suppress(ray.exceptions.RayError):  # the cluster has gone with it
                ray.kill(actor)


def _is_loss(error: Exception) -> bool:
    """Whether a worker's machine went away, rather than its process, which the candidate may have ended."""
    if isinstance(error, ray.exceptions.ActorDiedError):
        return error.preempted or any(reason in str(error) for reason in _NODE_DIED)
    return isinstance(error, _LOSSES)


def _proof(executor: RayExecutor) -> Executor:
    return executor
