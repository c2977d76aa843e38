"""Jobs in flight: those that go down with a worker or a machine are submitted again, each by its own count."""

from itertools import pairwise

import pytest

from evomerge.clock import ManualClock
from evomerge.cluster import WorkerState
from evomerge.errors import Interrupted, InvalidInput
from evomerge.jobs import Failed, Outcome, Scored
from evomerge.loop.dispatcher import AWAY_SECONDS, MAX_LOSSES, Dispatcher
from evomerge.loop.stop import Stop
from evomerge.study.search_study import MAX_ATTEMPTS
from evomerge.testing.executor_contract import job

CRASH = Failed("worker-0 died", crashed=True)
LOSS = Failed("its node has died", lost=True)
AWAY = Failed("the judge is away", away=True)
REFUSED = Failed("status 401", invalid=True)
DONE = Scored(scores=None)


class ScriptedExecutor:
    """Gives each submitted job the next result of a script, and notes when it was submitted and as which attempt."""

    capacity = 1
    isolated = True

    def __init__(self, clock, *results):
        self.clock = clock
        self.results = list(results)
        self.submitted = []
        self.queue = []

    def submit(self, job):
        self.submitted.append((self.clock.monotonic(), job.attempt))
        self.queue.append(job)

    def next_event(self, timeout):
        if not self.queue:
            return None
        job = self.queue.pop()
        return Outcome(key=job.key, attempt=job.attempt, result=self.results.pop(0), seconds={}, worker="worker-0")

    def cancel(self, key):
        self.queue = [job for job in self.queue if job.key != key]

    def workers(self):
        return [WorkerState("worker-0", "idle")]

    def close(self):
        pass


def run(*results, on_retry=lambda job: None, clock=None):
    """The outcome of one job under a script, and its submissions."""
    clock = clock or ManualClock()
    executor = ScriptedExecutor(clock, *results)
    dispatcher = Dispatcher(executor, Stop(), on_retry, clock=clock)
    dispatcher.submit(job("a"))
    while dispatcher.jobs:
        done = dispatcher.wait()
        if done is not None:
            return done[1], executor.submitted
    raise AssertionError("no outcome")


def test_a_candidate_under_which_machines_were_lost_more_often_than_it_has_attempts_is_scored():
    outcome, submitted = run(*[LOSS] * (MAX_ATTEMPTS + 2), DONE)
    assert outcome.result is DONE
    assert outcome.losses == MAX_ATTEMPTS + 2
    assert {attempt for _, attempt in submitted} == {1}


def test_a_candidate_whose_workers_crash_has_three_attempts_whatever_was_lost_between_them():
    outcome, submitted = run(LOSS, CRASH, LOSS, LOSS, CRASH, LOSS, CRASH)
    assert outcome.result.reason == "worker-0 died (attempt 3 of 3)"
    assert [attempt for _, attempt in submitted] == [1, 1, 2, 2, 2, 3, 3]


def test_only_a_crash_is_noted_as_another_attempt():
    noted = []
    run(LOSS, CRASH, LOSS, DONE, on_retry=noted.append)
    assert [job.attempt for job in noted] == [2]


def test_a_candidate_under_which_every_machine_is_lost_is_given_up_at_last_and_waits_longer_each_time():
    outcome, submitted = run(*[LOSS] * MAX_LOSSES)
    assert outcome.result.reason == f"its node has died (the machine was lost {MAX_LOSSES} times)"
    assert len(submitted) == MAX_LOSSES
    waits = [after - before for (before, _), (after, _) in pairwise(submitted)]
    assert waits[:4] == [0.0, 1.0, 2.0, 4.0]
    assert waits == sorted(waits)
    assert waits[-1] == 60.0


def test_a_candidate_that_needs_a_service_which_is_away_waits_longer_each_time_and_keeps_its_attempt():
    outcome, submitted = run(*[AWAY] * 9, DONE)
    assert outcome.result is DONE
    assert {attempt for _, attempt in submitted} == {1}
    assert [after - before for (before, _), (after, _) in pairwise(submitted)] == [1, 1, 2, 4, 8, 16, 32, 60, 60]


def test_a_service_that_stays_away_stops_the_run_and_fails_nothing():
    clock, jobs = ManualClock(), []
    start = clock.monotonic()
    with pytest.raises(Interrupted, match=r"the judge is away; waited for it for 6\d\d s; run the same command again"):
        run(*[AWAY] * 99, on_retry=jobs.append, clock=clock)
    assert AWAY_SECONDS <= clock.monotonic() - start < AWAY_SECONDS + 60.0
    assert jobs == []


def test_each_block_of_a_candidate_waits_for_a_service_by_itself():
    clock = ManualClock()
    executor = ScriptedExecutor(clock, *[AWAY] * 8, DONE, *[AWAY] * 8, DONE)
    dispatcher = Dispatcher(executor, Stop(), clock=clock)
    for _ in range(2):
        dispatcher.submit(job("a"))
        while dispatcher.jobs:
            dispatcher.wait()
    assert [after - before for (before, _), (after, _) in pairwise(executor.submitted)][9:12] == [1, 1, 2]


def alike(*results):
    """The keys that are passed on, each with its result, of jobs that end in their order on one worker."""
    executor = ScriptedExecutor(ManualClock(), *results)
    dispatcher, passed = Dispatcher(executor, Stop(), alike=True, clock=executor.clock), []
    for name in "abcdefgh"[: len(results)]:
        while dispatcher.free <= 0:
            passed.append(dispatcher.wait())
        dispatcher.submit(job(name))
    while dispatcher.jobs:
        passed.append(dispatcher.wait())
    return [(done[0].key, done[1].result) for done in passed if done is not None]


def test_two_jobs_in_a_row_that_find_the_same_fault_in_the_users_input_end_the_run():
    with pytest.raises(InvalidInput, match=r"^status 401 \(so ended b and c, one after the other; mend it"):
        alike(DONE, REFUSED, REFUSED, DONE)


@pytest.mark.parametrize(
    "results",
    [
        (REFUSED,),
        (DONE, REFUSED),
        (REFUSED, DONE, REFUSED),
        (REFUSED, Failed("collapsed"), DONE),
        (REFUSED, Failed("status 404", invalid=True), REFUSED),
    ],
)
def test_a_job_that_is_alone_with_its_fault_is_passed_on_like_others(results):
    assert alike(*results) == list(zip("abc", results, strict=False))


def test_a_job_whose_fault_is_in_doubt_can_be_cancelled_and_leaves_its_worker_free():
    executor = ScriptedExecutor(ManualClock(), REFUSED, DONE)
    dispatcher = Dispatcher(executor, Stop(), alike=True, clock=executor.clock)
    executor.capacity = 2
    dispatcher.submit(job("a"))
    dispatcher.submit(job("b"))
    executor.queue.reverse()
    assert dispatcher.wait() is None
    assert dispatcher.free == 1
    dispatcher.cancel("a")
    assert dispatcher.free == 1
    assert [done.key for done in dispatcher.wait()] == ["b", "b"]


def test_a_lost_job_that_is_cancelled_while_it_waits_is_not_submitted_again():
    clock = ManualClock()
    executor = ScriptedExecutor(clock, *[LOSS] * 3)
    dispatcher = Dispatcher(executor, Stop(), clock=clock)
    dispatcher.submit(job("a"))
    for _ in range(2):
        dispatcher.wait()
    dispatcher.cancel("a")
    clock.advance(100.0)
    assert dispatcher.wait() is None
    assert (len(executor.submitted), dispatcher.free) == (2, 1)


def test_a_signal_is_noticed_while_a_lost_job_waits():
    clock, stop = ManualClock(), Stop()
    start = clock.monotonic()
    dispatcher = Dispatcher(ScriptedExecutor(clock, *[LOSS] * 8), stop, clock=clock)
    dispatcher.submit(job("a"))
    while clock.monotonic() < start + 5.0:
        assert dispatcher.wait() is None
    stop.request("SIGTERM")
    with pytest.raises(Interrupted):
        dispatcher.wait()
    assert clock.monotonic() < start + 6.0
