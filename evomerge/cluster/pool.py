"""The policy of a pool of workers: which slot starts a worker when, which job it gets, and when it is given up.

It starts nothing itself and knows nothing of Ray: an executor tells it what happened and does what it says.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from evomerge.clock import SYSTEM_CLOCK, Clock
from evomerge.cluster.executor import (
    BACKING_OFF,
    BUSY,
    IDLE,
    PLACING,
    QUARANTINED,
    STARTING,
    WAITING,
    WorkerState,
)
from evomerge.errors import Interrupted, StoppedByFailures
from evomerge.jobs import Failed, Job, Outcome, Score

__all__ = ["Pool", "Slot"]

START_SECONDS: Final = 600.0  # in which a worker is built, or longer where a job may take longer
PLACE_SECONDS: Final = 600.0  # in which enough workers find a place
PATIENT_SECONDS: Final = 30.0  # before a worker that has no place yet is said to wait
MAX_DEATHS: Final = 3  # in a row, after which a slot or a node is in quarantine
LONGEST_BACKOFF: Final = 60.0
FIRST_QUARANTINE: Final = 60.0
LONGEST_QUARANTINE: Final = 900.0
NEVER: Final = float("inf")


@dataclass
class _PlaceRecord:
    """Deaths of workers in one place, without an outcome between them, and when it may have a worker again."""

    starts: int = 0  # of workers that never were ready
    crashes: int = 0  # of workers that had a job
    losses: int = 0  # of the machine
    not_before: float = 0.0

    @property
    def is_bad(self) -> bool:
        return self.starts >= MAX_DEATHS

    def backoff(self) -> float:
        """Seconds until the next worker. A first death costs nothing, nor does a candidate that kills two workers."""
        if self.is_bad:
            return min(LONGEST_QUARANTINE, FIRST_QUARANTINE * 2.0 ** (self.starts - MAX_DEATHS))
        deaths = max(self.starts + self.losses, self.crashes - 1)
        return min(LONGEST_BACKOFF, 2.0 ** (deaths - 2)) if deaths > 1 else 0.0


@dataclass
class Slot:
    """One place of the pool: the worker that fills it now, and what it is doing.

    Attributes:
        state: backing off, placing, starting, idle or busy.
        since: when it came into that state.
        node: on which its worker is.
        avoided: nodes on which its worker may not be.
        deadline: by which it has to show a sign of life.
    """

    name: str
    state: str = BACKING_OFF
    since: float = 0.0
    node: str | None = None
    avoided: frozenset[str] = frozenset()
    job: Job | None = None
    deadline: float = NEVER
    restarts: int = -1  # its first worker is none
    record: _PlaceRecord = field(default_factory=_PlaceRecord)


class Pool:
    """Slots for workers, and the jobs that wait for one.

    A death costs its slot a back-off that doubles; one whose workers die again and again before they are ready is in
    quarantine, and so is a node under whose workers candidates crash that other nodes score. The pool ends only where
    no slot can live, or where fewer workers than `fewest` have been placed for a long time.

    Args:
        fewest: workers below which a search is not worth going on.
        timeout: seconds in which a job shows a sign of life.
        describe: what each worker wants and what there is, in words.
    """

    def __init__(
        self,
        count: int,
        *,
        timeout: float,
        fewest: int = 1,
        describe: Callable[[], str] = lambda: "",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.slots = [Slot(f"worker-{index}", since=clock.monotonic()) for index in range(count)]
        self._fewest = min(fewest, count)
        self._timeout = timeout
        self._describe = describe
        self._clock = clock
        self._queue: deque[Job] = deque()
        self._nodes: defaultdict[str, _PlaceRecord] = defaultdict(_PlaceRecord)
        self._crashed_on: dict[str, set[str]] = {}  # key of a job -> slots whose workers crashed under it
        self._short_since: float | None = clock.monotonic()
        self._reason = ""
        self._checked = clock.monotonic()

    @property
    def capacity(self) -> int:
        """Jobs that can run at the same time, now or within moments: slots that wait for long are left out."""
        return sum(slot.state in (STARTING, IDLE, BUSY) or self._is_coming(slot) for slot in self.slots)

    def _is_coming(self, slot: Slot) -> bool:
        now = self._clock.monotonic()
        if slot.state == PLACING:
            return now - slot.since < PATIENT_SECONDS
        return slot.state == BACKING_OFF and slot.record.not_before - now < PATIENT_SECONDS

    @property
    def waiting(self) -> int:
        """Slots whose workers have been without a place for long."""
        now = self._clock.monotonic()
        return sum(slot.state == PLACING and now - slot.since >= PATIENT_SECONDS for slot in self.slots)

    def submit(self, job: Job) -> None:
        """Append a job to the queue."""
        self._queue.append(job)

    def cancel(self, key: str) -> Slot | None:
        """Forget a job. Returns the slot whose worker is doing it and has to be ended."""
        self._queue = deque(job for job in self._queue if job.key != key)
        self._crashed_on.pop(key, None)
        slot = next((slot for slot in self.slots if slot.job is not None and slot.job.key == key), None)
        if slot is not None:
            self._rest(slot, 0.0)
        return slot

    def start_due(self) -> list[Slot]:
        """The slots that shall have a new worker now, in place of any they have. They are placing from now on.

        A worker without a place avoids for ever what it avoided when it was started: it is replaced once one of those
        nodes has left quarantine.
        """
        now, bad = self._clock.monotonic(), frozenset(self.quarantined_nodes)
        due = [slot for slot in self.slots if slot.state == BACKING_OFF and slot.record.not_before <= now]
        again = [slot for slot in self.slots if slot.state == PLACING and slot.avoided - bad]
        for slot in due:
            slot.restarts += 1
        for slot in (*due, *again):
            slot.avoided = bad
            self._become(slot, PLACING)
        return due + again

    def place(self, slot: Slot, node: str) -> None:
        """The worker of a slot has found a place, and is being built."""
        slot.node = node
        self._become(slot, STARTING, max(START_SECONDS, self._timeout))

    def make_ready(self, slot: Slot) -> None:
        """The worker of a slot has been built."""
        slot.record.starts = 0
        self._become(slot, IDLE)

    def assign(self) -> list[tuple[Slot, Job]]:
        """Give waiting jobs to idle slots, in their order. They are busy from now on."""
        given = []
        for job in list(self._queue):
            slot = self._slot_for(job)
            if slot is not None:
                self._queue.remove(job)
                slot.job = job
                self._become(slot, BUSY, self._timeout)
                given.append((slot, job))
        return given

    def _slot_for(self, job: Job) -> Slot | None:
        """An idle slot. After a crash another one than before, unless there is no other."""
        avoided = self._crashed_on.get(job.key, set())
        idle = [slot for slot in self.slots if slot.state == IDLE]
        fit = [slot for slot in idle if slot.name not in avoided]
        if not fit and any(slot.state in (STARTING, BUSY) and slot.name not in avoided for slot in self.slots):
            return None
        preferred = job.worker if isinstance(job, Score) else None
        return next((slot for slot in fit or idle if slot.name == preferred), next(iter(fit or idle), None))

    def extend(self, slot: Slot) -> None:
        """A job has shown that it is alive."""
        slot.deadline = self._clock.monotonic() + self._timeout

    def finish(self, slot: Slot, outcome: Outcome) -> None:
        """A job is over. A worker whose device has failed under it, which would fail the next job too, rests."""
        if isinstance(outcome.result, Failed) and outcome.result.crashed:
            self._count_crash(slot)
            return
        self._crashed_on.pop(outcome.key, None)
        slot.record = _PlaceRecord()
        if slot.node is not None:
            self._nodes.pop(slot.node, None)
        slot.job = None
        self._become(slot, IDLE)

    def die(self, slot: Slot, reason: str, *, lost: bool) -> Outcome | None:
        """The worker of a slot is gone. Returns the outcome of the job that it had."""
        job = slot.job
        self._reason = reason = f"worker {slot.name} died: {reason}"
        if lost:
            slot.record.losses += 1
            self._rest(slot, slot.record.backoff())
        elif job is not None:
            self._count_crash(slot)
        else:
            slot.record.starts += 1
            self._count_on_node(slot)
            self._rest(slot, slot.record.backoff())
        return None if job is None else _outcome(slot, job, Failed(reason, crashed=not lost, lost=lost))

    def _count_crash(self, slot: Slot) -> None:
        assert slot.job is not None  # otherwise it is no crash
        self._crashed_on.setdefault(slot.job.key, set()).add(slot.name)
        slot.record.crashes += 1
        self._count_on_node(slot)
        self._rest(slot, slot.record.backoff())

    def _count_on_node(self, slot: Slot) -> None:
        if slot.node is None:
            return
        node = self._nodes[slot.node]
        node.starts += 1
        if node.is_bad:
            node.not_before = self._clock.monotonic() + node.backoff()

    @property
    def quarantined_nodes(self) -> list[str]:
        """Nodes that get no new workers now. Another one has workers that do their jobs."""
        now = self._clock.monotonic()
        bad = sorted(node for node, record in self._nodes.items() if record.is_bad and record.not_before > now)
        well = any(slot.node not in (None, *bad) and slot.state in (IDLE, BUSY) for slot in self.slots)
        return bad if well else []

    def end_overdue(self) -> list[tuple[Slot, Outcome | None]]:
        """Slots that showed no sign of life by their deadline, with the outcomes of their jobs.

        Their workers have to be ended.
        """
        now = self._clock.monotonic()
        ended: list[tuple[Slot, Outcome | None]] = []
        for slot in self.slots:
            if slot.deadline > now:
                continue
            if slot.job is None:
                ended.append((slot, self.die(slot, f"not built within {now - slot.since:.0f} s", lost=False)))
                continue
            reason = f"no outcome after {self._timeout:g} s; the worker was ended (workers.timeout)"
            ended.append((slot, _outcome(slot, slot.job, Failed(reason), self._timeout)))
            self._rest(slot, 0.0)
        return ended

    def lose_all(self, reason: str) -> list[Outcome]:
        """All machines are gone. Returns the outcomes of the jobs that ran on them; those in the queue stay there."""
        outcomes = [self.die(slot, reason, lost=True) for slot in self.slots if slot.state != BACKING_OFF]
        self._nodes.clear()
        return [outcome for outcome in outcomes if outcome is not None]

    def seconds_to_act(self) -> float:
        """Seconds until there may be something to start, to end or to say; infinite where nothing is waited for."""
        now = self._clock.monotonic()
        times = [slot.deadline for slot in self.slots]
        times += [slot.record.not_before for slot in self.slots if slot.state == BACKING_OFF]
        return max(0.0, min(times, default=NEVER) - now)

    def check(self) -> None:
        """Raise where it makes no sense to wait any longer.

        Raises:
            StoppedByFailures: no slot can live.
            Interrupted: too few workers have found a place for long.
        """
        self._excuse_absence()
        if all(slot.record.is_bad for slot in self.slots):
            times = min(slot.record.starts for slot in self.slots)
            raise StoppedByFailures(f"{self._reason}; it could not be started {times} times in a row")
        if self._short_since is not None and self._clock.monotonic() - self._short_since >= PLACE_SECONDS:
            self._give_up_placing()

    def _excuse_absence(self) -> None:
        """Leave out the time in which nobody started workers: this process was stopped, or waited for its storage."""
        now = self._clock.monotonic()
        absence, self._checked = now - self._checked, now
        if absence > PATIENT_SECONDS and self._short_since is not None:
            self._short_since += absence

    def _give_up_placing(self) -> None:
        short = f"fewer than {self._fewest} workers have had a place for {PLACE_SECONDS:g} s"
        if self._fewest == 1:
            short = f"no worker has found a place for {PLACE_SECONDS:g} s"
        if any(slot.state == PLACING or slot.record.losses for slot in self.slots):
            raise Interrupted(f"{short}: {self._describe()}; run the same command again when there is room")
        raise StoppedByFailures(f"{short}: {self._reason}")

    def states(self) -> list[WorkerState]:
        """The slots as `evomerge status` shows them."""
        return [
            WorkerState(
                slot.name, self._shown(slot), slot.job.key if slot.job is not None else None, max(0, slot.restarts)
            )
            for slot in self.slots
        ]

    def _shown(self, slot: Slot) -> str:
        if slot.state == PLACING and self._clock.monotonic() - slot.since >= PATIENT_SECONDS:
            return WAITING
        return QUARANTINED if slot.state == BACKING_OFF and slot.record.is_bad else slot.state

    def _become(self, slot: Slot, state: str, seconds: float = NEVER) -> None:
        slot.state = state
        slot.since = self._clock.monotonic()
        slot.deadline = slot.since + seconds
        if sum(each.state in (STARTING, IDLE, BUSY) for each in self.slots) >= self._fewest:
            self._short_since = None
        elif self._short_since is None:
            self._short_since = slot.since

    def _rest(self, slot: Slot, seconds: float) -> None:
        slot.job = slot.node = None
        slot.record.not_before = self._clock.monotonic() + seconds
        self._become(slot, BACKING_OFF)


def _outcome(slot: Slot, job: Job, failed: Failed, seconds: float | None = None) -> Outcome:
    """The outcome of a job whose worker sent none."""
    taken = {} if seconds is None else {"total": seconds}
    return Outcome(key=job.key, attempt=job.attempt, result=failed, seconds=taken, worker=slot.name)
