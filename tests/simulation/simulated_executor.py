"""An executor on a simulated clock: evomerge's pool, whose workers take time, crash, hang and lose their machines."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

from simulation.world import Process

from evomerge.cluster.executor import Executor, WorkerState
from evomerge.cluster.pool import Pool, Slot
from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.jobs import Cost, Job, Outcome, Scored

TIMEOUT = 60.0


def value_of(x: float) -> float:
    """The value of a candidate."""
    return (x * 7919.0) % 1.0


def is_deadly(x: float) -> bool:
    """Whether a candidate takes its worker down, each time."""
    return (x * 104_729.0) % 1.0 < 0.06


class SimulatedExecutor:
    """Workers of one controller. They end with it.

    Args:
        pace: by which jobs take longer than some seconds.
        note_second_try: is told the key of each job that is submitted again after a crash of its worker.
        note_fault: is told the key of each job that was not done by a fault of its own, and whether it is tried again.
    """

    isolated = True

    def __init__(
        self,
        process: Process,
        count: int,
        pace: float,
        note_second_try: Callable[[str], None],
        note_fault: Callable[[str, bool], None],
    ) -> None:
        self._process = process
        self._world = process.world
        self._clock = process.clock
        self._pace = pace
        self._note_second_try = note_second_try
        self._note_fault = note_fault
        self._crashed: set[str] = set()
        self._pool = Pool(count, timeout=TIMEOUT, clock=process.clock)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        self._lives: dict[str, int] = {}  # of each slot: what was planned for an earlier one does not happen
        self._ready: deque[Outcome] = deque()

    @property
    def capacity(self) -> int:
        return self._pool.capacity

    def submit(self, job: Job) -> None:
        if job.key in self._crashed:
            self._crashed.remove(job.key)
            self._note_second_try(job.key)
        self._pool.submit(job)

    def next_event(self, timeout: float) -> Outcome | None:
        end = self._clock.monotonic() + timeout
        while True:
            now = self._clock.monotonic()
            while self._events and self._events[0][0] <= now:
                heapq.heappop(self._events)[2]()
            self._act()
            if self._ready:
                return self._ready.popleft()
            if now >= end:
                return None
            coming = self._events[0][0] if self._events else end
            self._clock.sleep(max(0.001, min(end, coming, now + self._pool.seconds_to_act()) - now))

    def cancel(self, key: str) -> None:
        slot = self._pool.cancel(key)
        if slot is not None:
            self._end_life(slot)

    def workers(self) -> list[WorkerState]:
        return self._pool.states()

    def close(self) -> None:
        self._events.clear()

    def _act(self) -> None:
        self._pool.check()
        for slot in self._pool.start_due():
            self._plan(slot, self._world.draw.uniform(0.05, 0.3), lambda slot: self._pool.place(slot, "node"))
            self._plan(slot, self._world.draw.uniform(0.3, 2.0), self._pool.make_ready)
        for slot, job in self._pool.assign():
            self._work(slot, job)
        for slot, outcome in self._pool.end_overdue():
            self._end_life(slot)
            if outcome is not None:
                self._ready.append(outcome)
                self._note_fault(outcome.key, False)

    def _plan(self, slot: Slot, seconds: float, action: Callable[[Slot], None]) -> None:
        life = self._lives.setdefault(slot.name, 0)

        def happen() -> None:
            if self._lives[slot.name] == life:
                action(slot)

        heapq.heappush(self._events, (self._clock.monotonic() + seconds, next(self._number), happen))

    def _end_life(self, slot: Slot) -> None:
        self._lives[slot.name] = self._lives.get(slot.name, 0) + 1

    def _work(self, slot: Slot, job: Any) -> None:
        faults, counts = self._process.faults, self._world.counts
        fate, seconds = self._world.draw.random(), self._pace * self._world.draw.uniform(0.5, 4.0)
        if is_deadly(job.params["x"]) or fate < faults.crash:
            counts["crash"] += 1
            self._plan(slot, seconds, lambda slot: self._die(slot, job.key, lost=False))
        elif fate < faults.crash + faults.pre_empt:
            counts["pre-emption"] += 1
            self._plan(slot, seconds, lambda slot: self._die(slot, job.key, lost=True))
        elif fate < faults.crash + faults.pre_empt + faults.hang:
            counts["hang"] += 1
        else:
            self._plan(slot, seconds, lambda slot: self._finish(slot, job, seconds))

    def _die(self, slot: Slot, key: str, *, lost: bool) -> None:
        self._end_life(slot)
        outcome = self._pool.die(slot, "node lost" if lost else "exit code 9", lost=lost)
        if outcome is not None:
            self._ready.append(outcome)
            if not lost:
                self._crashed.add(key)
                self._note_fault(key, True)

    def _finish(self, slot: Slot, job: Any, seconds: float) -> None:
        value = value_of(job.params["x"])
        task = TaskScores(metric="acc", higher_is_better=True, items=(0,), outcomes=(value,), value=value, stderr=None)
        outcome = Outcome(
            key=job.key,
            attempt=job.attempt,
            result=Scored(Scores({"task": task}, {})),
            seconds={"total": seconds},
            worker=slot.name,
            cost=Cost(items=1, seconds=seconds, candidates=1),
        )
        self._pool.finish(slot, outcome)
        self._ready.append(outcome)


def _proof(executor: SimulatedExecutor) -> Executor:
    return executor
