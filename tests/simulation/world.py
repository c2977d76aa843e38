"""A world with a clock of its own, in which processes are greenlets that a schedule kills, stops and cuts off.

Everything that happens follows from one seed. A process that was killed never runs again, and nothing of it has an
effect any more: neither its `finally` blocks nor its threads.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

from evomerge.clock import Clock

MOST_STEPS = 60_000  # of one schedule, before it counts as hung
EPOCH = 1_800_000_000.0


class Hung(BaseException):
    """Nothing comes to an end any more."""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Chance of each fault at one step of a storage, and of a worker's fate at one job."""

    kill: float = 0.0
    freeze: float = 0.0
    refuse: float = 0.0  # an error, and nothing was stored
    lose_answer: float = 0.0  # stored, but an error
    partition: float = 0.0  # the storage is away for a while
    delay: float = 0.0
    crash: float = 0.0
    pre_empt: float = 0.0
    hang: float = 0.0

    def scaled(self, factor: float) -> Faults:
        return Faults(**{each.name: factor * getattr(self, each.name) for each in fields(self)})


CALM = Faults()


class Process:
    """A simulated process: its threads share its fate.

    Attributes:
        cut_off_until: when it reaches the storage again.
        troubled_until: the end of its latest stop, or of the time for which it was cut off.
        code: its exit code once it has ended by itself; None while it runs and where it was killed.
    """

    def __init__(self, world: World, pid: int, host: str, faults: Faults) -> None:
        self.world = world
        self.pid = pid
        self.host = host
        self.faults = faults
        self.is_over = False
        self.is_frozen = False
        self.code: int | None = None
        self.error: BaseException | None = None
        self.parked: list[Thread] = []
        self.cut_off_until = -math.inf
        self.troubled_until = -math.inf
        self.on_end: list[Callable[[], None]] = []
        self.clock = ProcessClock(self)

    def end(self) -> None:
        """Whatever the kernel frees of a process that is over."""
        self.is_over = True
        for each in self.on_end:
            each()
        self.on_end.clear()

    def freeze(self, seconds: float) -> None:
        """As SIGSTOP does, and SIGCONT after a while."""
        if not self.is_over and not self.is_frozen:
            self.is_frozen = True
            self.world.counts["freeze"] += 1
            self.troubled_until = max(self.troubled_until, self.world.now + seconds)
            self.world.at(self.world.now + seconds, self._thaw)

    def _thaw(self) -> None:
        self.is_frozen = False
        parked, self.parked = self.parked, []
        for thread in parked:
            self.world.at(self.world.now, thread.resume)

    def kill(self) -> None:
        """As SIGKILL does."""
        if not self.is_over:
            self.world.counts["kill"] += 1
            self.end()
            self.world.on_over(self)


class Thread:
    """One thread of a process."""

    def __init__(self, process: Process, body: Callable[[], None]) -> None:
        self.process = process
        self.is_over = False
        self._body = body
        self.greenlet = greenlet(self._run, parent=process.world.hub)
        process.world.threads.append(self)

    def _run(self) -> None:
        with suppress(Exception):  # a thread ends by an error, and its process goes on
            self._body()
        self.is_over = True

    def resume(self) -> None:
        world = self.process.world
        if self.process.is_over or self.is_over:
            return
        if self.process.is_frozen:
            self.process.parked.append(self)
            return
        world.current = self
        self.greenlet.switch()


class ProcessClock(Clock):
    """The clocks of the machine on which a process runs."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world

    def monotonic(self) -> float:
        self._world.count_step()
        return self._world.now + self._world.uptimes[self._process.host]

    def time(self) -> float:
        return EPOCH + self._world.now + self._world.skews[self._process.host]

    def sleep(self, seconds: float) -> None:
        self._world.sleep(seconds)


class World:
    """Processes, their clocks, and the faults that a seed draws."""

    def __init__(self, seed: int | str) -> None:
        self.draw = random.Random(seed)
        self.now = 0.0
        self.hub = getcurrent()
        self.current: Thread | None = None
        self.threads: list[Thread] = []
        self.processes: dict[int, Process] = {}
        self.skews: Counter[str] = Counter()
        self.uptimes: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.steps = 0
        self.is_over = False
        self.on_over: Callable[[Process], None] = lambda process: None
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()

    def at(self, moment: float, action: Callable[[], None]) -> None:
        """Let something happen at a moment."""
        heapq.heappush(self._queue, (moment, next(self._number), action))

    def run(self) -> None:
        """Let everything happen, until nothing is left to happen."""
        while self._queue:
            moment, _, action = heapq.heappop(self._queue)
            self.now = max(self.now, moment)
            self.count_step()
            action()

    def close(self) -> None:
        """End all threads, whose last words nobody hears."""
        self.is_over = True
        for thread in self.threads:
            if not thread.greenlet.dead and thread.greenlet:
                self.current = thread
                with suppress(BaseException):  # whatever one says that was killed
                    thread.greenlet.throw(GreenletExit)

    def start(self, host: str, faults: Faults, main: Callable[[Process], None]) -> Process:
        """Start a process; `main` sets its code."""
        if host not in self.uptimes:
            self.uptimes[host] = self.draw.uniform(1e3, 1e6)
        process = Process(self, len(self.processes) + 1, host, faults)
        self.processes[process.pid] = process

        def body() -> None:
            main(process)
            if not self.is_over:
                process.end()
                self.on_over(process)

        self.at(self.now, Thread(process, body).resume)
        return process

    @property
    def process(self) -> Process:
        assert self.current is not None  # asked by a process only
        return self.current.process

    def count_step(self) -> None:
        self.steps += 1
        if self.is_over:
            raise GreenletExit
        if self.steps > MOST_STEPS:
            raise Hung(f"{self.steps} steps, {self.now:.0f} s")

    def sleep(self, seconds: float) -> None:
        """Let the thread that runs wait."""
        self.count_step()
        wake, thread = self.now + max(0.0, seconds), self.current
        assert thread is not None
        if not self._queue or self._queue[0][0] > wake:  # nothing else happens meanwhile
            self.now = wake
            return
        self.at(wake, thread.resume)
        self.hub.switch()
        self.count_step()

    def leave(self) -> None:
        """Stop running a thread whose process was frozen or killed."""
        thread = self.current
        assert thread is not None
        if thread.process.is_frozen and not thread.process.is_over:
            thread.process.parked.append(thread)
        self.hub.switch()
        self.count_step()

    def trouble(self) -> None:
        """Whatever may happen to a process between two instructions."""
        self.count_step()
        process, faults = self.process, self.process.faults
        if faults is CALM:
            return
        chance = self.draw.random()
        if chance < faults.kill:
            process.kill()
            self.leave()
        elif chance < faults.kill + faults.freeze:
            process.freeze(self._spell())
            self.leave()
        elif chance < faults.kill + faults.freeze + faults.delay:
            self.counts["delay"] += 1
            self.sleep(self.draw.expovariate(2.0))

    def call(self, action: Callable[[], Any], away: Callable[[], Exception], *, writes: bool = True) -> Any:
        """Ask a storage for something, across a network or a disk that fails."""
        self.trouble()
        process, faults = self.process, self.process.faults
        if faults is CALM:
            return action()
        if self.now < process.cut_off_until:
            self.sleep(0.01)
            raise away()
        chance = self.draw.random()
        if chance < faults.partition:
            self.counts["partition"] += 1
            process.cut_off_until = process.troubled_until = self.now + self._spell()
            raise away()
        chance -= faults.partition
        if chance < faults.refuse:
            self.counts["refused"] += 1
            raise away()
        result = action()
        if writes and chance - faults.refuse < faults.lose_answer:
            self.counts["lost answer"] += 1
            raise away()
        self.trouble()
        return result

    def _spell(self) -> float:
        """Seconds between a moment and half an hour, of any order of magnitude."""
        return 10 ** self.draw.uniform(-1.0, 3.2)

    def has_ended(self, record: Mapping[str, Any]) -> bool:
        """As `holding_process.has_ended` answers on the machine of the process that asks."""
        return record.get("host") == self.process.host and self._of(record).is_over

    def is_running(self, record: Mapping[str, Any]) -> bool:
        """As `holding_process.is_running` answers on the machine of the process that asks."""
        return record.get("host") == self.process.host and not self._of(record).is_over

    def _of(self, record: Mapping[str, Any]) -> Process:
        return self.processes[record["pid"]]
