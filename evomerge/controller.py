"""The loop: ask, submit, score, tell, until the budget is spent. It decides what is tried again and when to stop."""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from types import FrameType
from typing import Any

from evomerge.cluster import Executor
from evomerge.errors import Interrupted, StoppedByFailures, StudyHeld
from evomerge.evaluation.evaluator import ItemBlock
from evomerge.jobs import Failed, FindBatchSize, Found, Job, Outcome, Progress, Score, Scored
from evomerge.objective import Objective
from evomerge.recipe import Recipe
from evomerge.study import attributes
from evomerge.study.search_study import MAX_ATTEMPTS, Proposal, SearchStudy

WINDOW = 20  # the latest trials among which more than half failing stops the search
STATUS_SECONDS = 2.0  # how often the status attribute is written at most
SIGNALS = (signal.SIGINT, signal.SIGTERM)
POLL_SECONDS = 0.5  # how long a signal may wait to be noticed


class Stop:
    """Set by a signal: the loop ends at the next event and leaves what is in flight to the next run."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def request(self, reason: str) -> None:
        self.reason = reason

    def listen(self) -> None:
        """Let SIGINT and SIGTERM request a stop. To be called again after ray.init, which installs its own handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C means now
        self.request(signal.Signals(number).name)

    def check(self) -> None:
        if self.reason is not None:
            raise Interrupted(f"stopped by {self.reason}; run the same command again to go on")


@contextmanager
def stopping_on_signals() -> Iterator[Stop]:
    """A Stop that listens to signals, until the end of the block."""
    stop = Stop()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    stop.listen()
    try:
        yield stop
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


class Dispatcher:
    """Jobs in flight. Trouble of the machine is retried here, up to `MAX_ATTEMPTS`; everything else is passed on."""

    def __init__(
        self,
        executor: Executor,
        stop: Stop,
        on_retry: Callable[[Job], None] = lambda job: None,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self._executor = executor
        self._stop = stop
        self._on_retry = on_retry
        self._on_progress = on_progress
        self.jobs: dict[str, Job] = {}

    @property
    def free(self) -> int:
        return self._executor.capacity - len(self.jobs)

    def submit(self, job: Job) -> None:
        self.jobs[job.key] = job
        self._executor.submit(job)

    def wait(self, timeout: float = POLL_SECONDS) -> tuple[Job, Outcome] | None:
        """The next job that is over, or None.

        Raises:
            Interrupted: a signal asked for a stop.
        """
        self._stop.check()
        outcome = self._executor.next_event(timeout)
        if isinstance(outcome, Progress):
            self._on_progress(outcome)
            return None
        if outcome is None:
            return None
        job = self.jobs.pop(outcome.key)
        if isinstance(outcome.result, Failed) and outcome.result.infrastructural:
            if job.attempt < MAX_ATTEMPTS:
                again = replace(job, attempt=job.attempt + 1)
                self._on_retry(again)
                self.submit(again)
                return None
            reason = f"{outcome.result.reason} (attempt {job.attempt} of {MAX_ATTEMPTS})"
            outcome = replace(outcome, result=Failed(reason))
        return job, outcome


def run_all(executor: Executor, stop: Stop, jobs: Iterable[Job]) -> Iterator[tuple[Job, Outcome]]:
    """Run a list of jobs through the executor and yield each as it ends."""
    dispatcher = Dispatcher(executor, stop)
    for job in jobs:
        dispatcher.submit(job)
    while dispatcher.jobs:
        done = dispatcher.wait()
        if done is not None:
            yield done


def find_batch_size(executor: Executor, stop: Stop, recipe: Recipe) -> int | None:
    """Let one worker find the batch size that the whole study will use.

    Raises:
        StoppedByFailures: not even this recipe, a source as it stands, can be run.
    """
    for _, outcome in run_all(executor, stop, [FindBatchSize("batch size", recipe)]):
        if isinstance(outcome.result, Found):
            return outcome.result.batch_size
        raise StoppedByFailures(f"no batch size can be found: {_reason(outcome)}")
    return None


def _reason(outcome: Outcome) -> str:
    return outcome.result.reason if isinstance(outcome.result, Failed) else "a job of another kind came back"


@dataclass(frozen=True)
class Status:
    """Where a search stands: what the progress line shows and `evomerge status` reads from the study."""

    state: str  # running · finished · interrupted · failed
    finished: int
    budget: int
    failed: int
    running: int
    best: float | None
    best_trial: int | None
    trials_per_hour: float | None
    seconds_left: float | None
    run_seconds: float
    workers: Mapping[str, int]
    restarts: int
    host: str
    pid: int
    updated: float


class Controller:
    """Spends a study's budget.

    Args:
        trials: finished trials that the study shall hold.
        hours: hours of running, summed over all runs of the study; None for no bound.
        on_status: called after every event with where the search stands.
    """

    def __init__(
        self,
        search: SearchStudy,
        executor: Executor,
        objective: Objective,
        stop: Stop,
        *,
        trials: int,
        hours: float | None = None,
        batch_size: int | None = None,
        on_status: Callable[[Status], None] = lambda status: None,
    ) -> None:
        self._search = search
        self._executor = executor
        self._objective = objective
        self._trials = trials
        self._hours = hours
        self._batch_size = batch_size
        self._on_status = on_status
        self._dispatcher = Dispatcher(executor, stop, self._note_retry)
        self._proposals: dict[str, Proposal] = {}
        self._latest: deque[bool] = deque(maxlen=WINDOW)
        self._started = time.monotonic()
        self._told_here = 0
        self._written = -math.inf
        self._before = float((search.study.user_attrs.get(attributes.STATUS) or {}).get("run_seconds", 0.0))

    def run(self) -> None:
        """Go on until the budget is spent.

        Raises:
            Interrupted: a signal asked for a stop; trials in flight are scored again by the next run.
            StoppedByFailures: more than half of the latest candidates failed, or no worker can be kept alive.
        """
        state = "failed"
        try:
            for proposal in self._search.recover():
                if not self._is_spent():  # what the budget has no room for stays as it is, for a larger one
                    self._submit(proposal)
            while self._propose() or self._dispatcher.jobs:
                done = self._dispatcher.wait()
                if done is not None:
                    self._finish(*done)
                self._report("running")
            state = "finished"
        except (Interrupted, KeyboardInterrupt):
            state = "interrupted"
            with suppress(Interrupted, StudyHeld):
                for proposal in self._proposals.values():
                    self._search.give_back(proposal)
            raise
        finally:
            # Neither a storage that is away nor a study that another controller has taken over may hide why we stop.
            with suppress(Interrupted, StudyHeld):
                self._report(state, force=True)

    def _propose(self) -> bool:
        """Fill the free workers. False where the budget allows no further proposal."""
        while self._dispatcher.free > 0:
            if self._is_spent():
                return False
            self._submit(self._search.ask())
        return True

    def _is_spent(self) -> bool:
        """Whether the trials that are finished and in flight, or the hours, fill the budget."""
        time_is_up = self._hours is not None and self._run_seconds() >= self._hours * 3600
        return time_is_up or self._search.finished + len(self._proposals) >= self._trials

    def _run_seconds(self) -> float:
        return self._before + time.monotonic() - self._started

    def _submit(self, proposal: Proposal) -> None:
        key = f"{self._search.study.study_name}/{proposal.number}"
        self._search.begin(proposal)
        self._proposals[key] = proposal
        self._dispatcher.submit(
            Score(
                key,
                proposal.recipe,
                ItemBlock("search"),
                proposal.params,
                proposal.attempt,
                batch_size=self._batch_size,
            )
        )

    def _note_retry(self, job: Job) -> None:
        proposal = replace(self._proposals[job.key], attempt=job.attempt)
        self._proposals[job.key] = proposal
        self._search.begin(proposal)

    def _finish(self, job: Job, outcome: Outcome) -> None:
        proposal = self._proposals.pop(job.key)
        reason = self._tell(proposal, outcome)
        self._told_here += 1
        self._latest.append(reason is not None)
        if reason is not None and sum(self._latest) > WINDOW // 2:
            raise StoppedByFailures(
                f"{sum(self._latest)} of the latest {len(self._latest)} candidates failed, the last one: {reason}"
            )

    def _tell(self, proposal: Proposal, outcome: Outcome) -> str | None:
        """Store what came of a proposal; the reason where it failed."""
        result = outcome.result
        if not isinstance(result, Scored):
            self._search.fail(proposal.number, _reason(outcome), outcome)
            return _reason(outcome)
        try:
            value, stderr = self._objective.value(result.scores), self._objective.stderr(result.scores)
            reason = None if math.isfinite(value) else f"the objective is {value}"
        except (ArithmeticError, ValueError) as error:  # scores of a collapsed merge overflow, or are infinite
            reason = f"the objective cannot be computed: {error}"
        if reason is not None:
            self._search.fail(proposal.number, reason, outcome)
            return reason
        self._search.tell(proposal, outcome, value, stderr)
        return None

    def _report(self, state: str, force: bool = False) -> None:
        status = self._status(state)
        self._on_status(status)
        if force or time.monotonic() - self._written >= STATUS_SECONDS:
            self._search.set(attributes.STATUS, asdict(status))
            self._written = time.monotonic()

    def _status(self, state: str) -> Status:
        search, best = self._search, self._search.best
        finished = search.finished
        elapsed = time.monotonic() - self._started
        rate = self._told_here / elapsed if self._told_here else None
        left = max(self._trials - finished, 0)
        workers = self._executor.workers()
        states = [worker.state for worker in workers]
        return Status(
            state=state,
            finished=finished,
            budget=self._trials,
            failed=search.failed,
            running=len(self._proposals),
            best=best[0] if best else None,
            best_trial=best[1] if best else None,
            trials_per_hour=rate * 3600 if rate else None,
            seconds_left=left / rate if rate else None,
            run_seconds=self._run_seconds(),
            workers={name: states.count(name) for name in sorted(set(states))},
            restarts=sum(worker.restarts for worker in workers),
            host=socket.gethostname(),
            pid=os.getpid(),
            updated=time.time(),
        )


def status_of(content: Mapping[str, Any]) -> Status:
    """The status that a study keeps."""
    return Status(**content)
