"""Jobs in flight, for every loop over an executor."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from evomerge.clock import SYSTEM_CLOCK, Clock
from evomerge.cluster import Executor
from evomerge.errors import Interrupted, InvalidInput, StoppedByFailures
from evomerge.jobs import Failed, FindBatchSize, Found, Job, Outcome, Progress
from evomerge.loop.stop import GO_ON, Stop
from evomerge.recipe import Recipe
from evomerge.study.search_study import MAX_ATTEMPTS

POLL_SECONDS = 0.5  # how long a signal may wait to be noticed
MAX_LOSSES = 20  # of a machine under one job, before the job is no longer thought innocent
LONGEST_WAIT = 60.0  # seconds before a job whose machines are lost one after another is submitted again
AWAY_SECONDS = 600.0  # since a job first met a service that is away, after which the run stops


class Dispatcher:
    """Jobs in flight. Those that went down with their worker or machine, or met a service that is away, are submitted
    again here; everything else is passed on.

    A job whose worker crashed may have caused that: it has `MAX_ATTEMPTS` in all. One whose machine was lost keeps its
    attempt, and waits longer each time, up to `MAX_LOSSES` times. So does one that needs a service which is away; no
    job is given up for that, but the run stops after `AWAY_SECONDS`.

    Args:
        on_retry: called with each job that is submitted as its next attempt.
        alike: stop where two jobs in a row say that the user's input cannot be used, for the same reason: one alone may
            be at fault itself, and is passed on when another job has ended, or no other is in flight.
    """

    def __init__(
        self,
        executor: Executor,
        stop: Stop,
        on_retry: Callable[[Job], None] = lambda job: None,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        *,
        alike: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._alike = alike
        self._executor = executor
        self._stop = stop
        self._on_retry = on_retry
        self._on_progress = on_progress
        self._clock = clock
        self._losses: Counter[str] = Counter()
        self._away_since: dict[str, float] = {}
        self._due: dict[str, float] = {}  # jobs that wait to be submitted again, each until then
        self._ended: deque[tuple[Job, Outcome]] = deque()  # to be passed on, the last one perhaps not yet
        self.jobs: dict[str, Job] = {}

    @property
    def free(self) -> int:
        return self._executor.capacity - self._busy

    @property
    def _busy(self) -> int:
        return len(self.jobs) - len(self._ended)

    def submit(self, job: Job) -> None:
        self.jobs[job.key] = job
        self._executor.submit(job)

    def cancel(self, key: str) -> None:
        """End a job without an outcome, also one that waits to be submitted again."""
        del self.jobs[key]
        self._ended = deque(each for each in self._ended if each[0].key != key)
        self._due.pop(key, None)
        self._away_since.pop(key, None)
        del self._losses[key]
        self._executor.cancel(key)

    def wait(self, timeout: float = POLL_SECONDS) -> tuple[Job, Outcome] | None:
        """The next job that is over, or None.

        Raises:
            Interrupted: a signal asked for a stop, or a service stays away.
            InvalidInput: the user's input cannot be used.
        """
        self._stop.look()
        self._submit_due()
        if self._ended and not (self._is_in_doubt and self._busy):
            return self._pass_on()
        self._await(timeout)
        return self._pass_on() if self._ended and not self._is_in_doubt else None

    @property
    def _is_in_doubt(self) -> bool:
        """Whether it takes another outcome to tell whose fault the one to be passed on is."""
        return self._alike and len(self._ended) == 1 and _is_invalid(self._ended[0][1])

    def _pass_on(self) -> tuple[Job, Outcome]:
        job, outcome = self._ended.popleft()
        del self.jobs[job.key]
        self._away_since.pop(job.key, None)
        return job, replace(outcome, losses=self._losses.pop(job.key, 0))

    def _await(self, timeout: float) -> None:
        """Take note of the next event of the executor, if there is one in time."""
        outcome = self._executor.next_event(timeout)
        if isinstance(outcome, Progress):
            self._on_progress(outcome)
            return
        if outcome is None:
            if len(self._due) == self._busy > 0:  # the executor has nothing to wait for
                self._clock.sleep(min(timeout, max(0.0, min(self._due.values()) - self._clock.monotonic())))
            return
        job = self.jobs[outcome.key]
        if isinstance(outcome.result, Failed) and outcome.result.by_machine:
            if self._again(job, outcome.result):
                return
            tries = f"attempt {job.attempt} of {MAX_ATTEMPTS}"
            if outcome.result.lost:
                tries = f"the machine was lost {self._losses[job.key]} times"
            outcome = replace(outcome, result=replace(outcome.result, reason=f"{outcome.result.reason} ({tries})"))
        self._refuse_alike(job, outcome)
        self._ended.append((job, outcome))

    def _refuse_alike(self, job: Job, outcome: Outcome) -> None:
        if not self._alike or not self._ended or not _is_invalid(outcome):
            return
        before, other = self._ended[-1]
        if _is_invalid(other) and reason_of(other) == reason_of(outcome):
            raise InvalidInput(
                f"{reason_of(outcome)} (so ended {before.key} and {job.key}, one after the other; mend it and run the "
                "same command again, which scores both, or cancel these trials where the fault is theirs)"
            )

    def _again(self, job: Job, failed: Failed) -> bool:
        """Submit a job that was not done, by no fault of its own, again, now or later. False where it had all tries."""
        if failed.away:
            self._wait_for_service(job, failed)
            return True
        if failed.lost:
            self._losses[job.key] += 1
            losses = self._losses[job.key]
            if losses >= MAX_LOSSES:
                return False
            wait = min(LONGEST_WAIT, 2.0 ** (losses - 2)) if losses > 1 else 0.0
            self._due[job.key] = self._clock.monotonic() + wait
            self._submit_due()
            return True
        if job.attempt >= MAX_ATTEMPTS:
            return False
        again = replace(job, attempt=job.attempt + 1)
        self._on_retry(again)
        self.submit(again)
        return True

    def _wait_for_service(self, job: Job, failed: Failed) -> None:
        """Submit a job again once as much time has passed as since it first met the service that is away.

        Raises:
            Interrupted: that is long enough.
        """
        now = self._clock.monotonic()
        absence = now - self._away_since.setdefault(job.key, now)
        if absence >= AWAY_SECONDS:
            raise Interrupted(f"{failed.reason}; waited for it for {absence:.0f} s; {GO_ON}")
        self._due[job.key] = now + min(LONGEST_WAIT, max(1.0, absence))

    def _submit_due(self) -> None:
        now = self._clock.monotonic()
        for key in [key for key, due in self._due.items() if due <= now]:
            del self._due[key]
            self._executor.submit(self.jobs[key])


def run_all(
    executor: Executor,
    stop: Stop,
    jobs: Iterable[Job],
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Iterator[tuple[Job, Outcome]]:
    """Run a list of jobs through the executor and yield each as it ends."""
    dispatcher = Dispatcher(executor, stop, on_progress=on_progress)
    for job in jobs:
        dispatcher.submit(job)
    while dispatcher.jobs:
        done = dispatcher.wait()
        if done is not None:
            yield done


def find_batch_size(executor: Executor, stop: Stop, recipe: Recipe) -> Found:
    """Let one worker find the batch size that the whole study will use.

    Raises:
        InvalidInput: the model or a request cannot be scored, whatever the weights.
        StoppedByFailures: not even this recipe, an unchanged source, can be run.
    """
    for _, outcome in run_all(executor, stop, [FindBatchSize("batch size", recipe)]):
        if isinstance(outcome.result, Found):
            return outcome.result
        refuse_invalid(outcome)
        raise StoppedByFailures(f"no batch size can be found: {reason_of(outcome)}")
    raise StoppedByFailures("no batch size can be found: the workers gave no outcome")


def refuse_invalid(outcome: Outcome) -> None:
    """Raise the fault that a worker found in the user's input: every other worker would find it, too.

    Raises:
        InvalidInput: as the worker raised it.
    """
    if _is_invalid(outcome):
        raise InvalidInput(reason_of(outcome))


def _is_invalid(outcome: Outcome) -> bool:
    return isinstance(outcome.result, Failed) and outcome.result.invalid


def reason_of(outcome: Outcome) -> str:
    """Reason of a job without a result."""
    return outcome.result.reason if isinstance(outcome.result, Failed) else "a job of another kind came back"
