"""Jobs in flight, for every loop over an executor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from evomerge.cluster import Executor
from evomerge.errors import InvalidInput, StoppedByFailures
from evomerge.jobs import Failed, FindBatchSize, Found, Job, Outcome, Progress
from evomerge.loop.stop import Stop
from evomerge.recipe import Recipe
from evomerge.study.search_study import MAX_ATTEMPTS

POLL_SECONDS = 0.5  # how long a signal may wait to be noticed


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
    if isinstance(outcome.result, Failed) and outcome.result.invalid:
        raise InvalidInput(outcome.result.reason)


def reason_of(outcome: Outcome) -> str:
    """Reason of a job without a result."""
    return outcome.result.reason if isinstance(outcome.result, Failed) else "a job of another kind came back"
