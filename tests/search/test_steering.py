"""Requests to a running search from elsewhere: a pause, its end, a stop, and the end of single trials."""

import os
import socket
from collections import deque

import optuna
import pytest
from optuna.trial import TrialState

from evomerge.cli import run_command
from evomerge.clock import ManualClock
from evomerge.cluster import InlineExecutor
from evomerge.evaluation.synthetic import SyntheticEvaluator
from evomerge.loop import controller, steering
from evomerge.loop.budget import BudgetAccount
from evomerge.loop.steering import Steering
from evomerge.loop.stop import Stop
from evomerge.requests.steering_requests import RequestBook, SteeringRequests
from evomerge.spec import BudgetSpec
from evomerge.storage import attributes
from evomerge.storage.opening import open_storage, release
from evomerge.study.search_study import SearchStudy

TELL = SearchStudy.tell
URLS = {"sqlite": "sqlite:///study.db", "journal": "journal:///study.journal"}


@pytest.fixture(params=URLS)
def url(request):
    return URLS[request.param]


@pytest.fixture(autouse=True)
def requests_are_read_at_once(monkeypatch):
    monkeypatch.setattr(steering, "POLL_SECONDS", 0.0)


def ask(url, request):
    """Make a request as another process does: by a storage of its own."""
    storage = open_storage(url)
    request(RequestBook(storage, "sim"))
    release(storage)


def while_scoring(monkeypatch, trial, act):
    """Call `act` while a trial of the search is being scored."""
    score = SyntheticEvaluator.score

    def scored(self, candidate, items):
        if candidate.key == f"sim/{trial}":
            act()
        return score(self, candidate, items)

    monkeypatch.setattr(SyntheticEvaluator, "score", scored)


def trials(url):
    return optuna.load_study(study_name="sim", storage=open_storage(url)).trials


def run(spec, url, *options):
    return run_command(["run", str(spec), "--ray", "none", "--storage", url, *options])


def test_a_paused_search_proposes_nothing_and_goes_on_with_the_same_proposals(write_spec, monkeypatch, url, tmp_path):
    spec = write_spec()
    assert run(spec, f"sqlite:///{tmp_path}/whole.db") == 0
    seen = []

    def rest(self):
        seen.append([trial.state for trial in trials(url)])
        if len(seen) == 3:
            ask(url, RequestBook.resume)

    monkeypatch.setattr(controller.Controller, "_rest", rest)
    while_scoring(monkeypatch, 2, lambda: ask(url, RequestBook.pause))
    assert run(spec, url) == 0
    assert seen == [[TrialState.COMPLETE] * 3] * 3  # what was in flight has ended, and nothing has begun
    whole = trials(f"sqlite:///{tmp_path}/whole.db")
    assert [(trial.params, trial.value) for trial in trials(url)] == [(trial.params, trial.value) for trial in whole]


def test_a_run_that_begins_paused_scores_no_interrupted_trial_again(write_spec, monkeypatch, url):
    spec = write_spec()
    while_scoring(monkeypatch, 2, lambda: ask(url, lambda book: book.stop(socket.gethostname(), os.getpid())))
    assert run(spec, url) == 3
    ask(url, RequestBook.pause)
    states = []

    def rest(self):
        states.extend(trial.state for trial in trials(url))
        ask(url, RequestBook.resume)

    monkeypatch.setattr(controller.Controller, "_rest", rest)
    assert run(spec, url) == 0
    assert states == [TrialState.COMPLETE] * 3 + [TrialState.RUNNING]
    assert [trial.state for trial in trials(url)] == [TrialState.COMPLETE] * 6


def test_a_stop_is_exit_code_three_and_resumable(write_spec, monkeypatch, url, tmp_path, capsys):
    spec = write_spec()
    assert run(spec, f"sqlite:///{tmp_path}/whole.db") == 0
    while_scoring(monkeypatch, 3, lambda: ask(url, lambda book: book.stop(socket.gethostname(), os.getpid())))
    assert run(spec, url) == 3
    assert "evomerge stop" in capsys.readouterr().err
    assert run(spec, url) == 0  # the request was taken back
    whole = trials(f"sqlite:///{tmp_path}/whole.db")
    assert [trial.params for trial in trials(url)] == [trial.params for trial in whole]


def test_a_stop_that_was_meant_for_an_earlier_run_stops_no_other(write_spec, url):
    spec = write_spec()
    assert run(spec, url, "--trials", "2") == 0
    ask(url, lambda book: book.stop("elsewhere", 1))
    assert run(spec, url) == 0


class SlowTrial(InlineExecutor):
    """Two workers, one of which never ends a certain trial."""

    capacity = 2
    slow = "sim/2"
    cancelled: tuple[str, ...] = ()

    def next_event(self, timeout):
        if self._queue and self._queue[0].key == self.slow:
            self._queue.rotate(-1)
        return None if self._queue and self._queue[0].key == self.slow else super().next_event(timeout)

    def cancel(self, key):
        type(self).cancelled += (key,)
        self._queue = deque(job for job in self._queue if job.key != key)


@pytest.fixture
def one_is_slow(monkeypatch):
    SlowTrial.cancelled = ()
    monkeypatch.setattr("evomerge.search.session.open_executor", lambda setup, *rest, **named: _slow(setup))
    return SlowTrial


def _slow(setup):
    from evomerge.worker import Worker

    return SlowTrial(Worker(setup, "slow"))


def test_a_cancelled_trial_ends_as_failed_and_the_search_goes_on(write_spec, monkeypatch, url, one_is_slow):
    while_scoring(monkeypatch, 4, lambda: ask(url, lambda book: book.cancel(2)))
    assert run(write_spec(), url) == 0
    assert one_is_slow.cancelled == ("sim/2",)
    found = trials(url)
    assert found[2].state is TrialState.FAIL
    assert found[2].user_attrs[attributes.FAILURE] == "cancelled by the user"
    assert [trial.state for trial in found].count(TrialState.COMPLETE) == 5  # it counts towards the budget of 6
    assert not found[2].user_attrs.get(attributes.INTERRUPTED)


def test_cancelled_trials_are_no_failures_that_stop_a_search(write_spec, monkeypatch, url, one_is_slow):
    monkeypatch.setattr(controller, "WINDOW", 2)
    while_scoring(monkeypatch, 1, lambda: ask(url, lambda book: [book.cancel(number) for number in (2, 3, 4)]))
    assert run(write_spec(budget={"trials": 8}), url) == 0
    failed = [trial.number for trial in trials(url) if trial.state is TrialState.FAIL]
    assert failed == [2]  # the others had not begun when they were to end, and are scored


def test_a_trial_of_a_dead_controller_is_cancelled_without_being_scored_again(write_spec, monkeypatch, url):
    spec = write_spec()

    class Killed(BaseException):
        pass

    def tell(self, proposal, *rest):
        if proposal.number == 2:
            raise Killed
        TELL(self, proposal, *rest)

    with monkeypatch.context() as dying:
        dying.setattr(SearchStudy, "tell", tell)
        with pytest.raises(Killed):
            run(spec, url)
    ask(url, lambda book: book.cancel(2))
    assert run(spec, url) == 0
    assert trials(url)[2].user_attrs[attributes.FAILURE] == "cancelled by the user"


def test_a_storage_that_is_away_keeps_no_run_from_looking_whether_it_should_stop():
    class Away:
        def read(self):
            raise optuna.exceptions.StorageInternalError("away")

    stop = Stop()
    with Steering(Away(), stop, "sim").followed() as steering:
        stop.look()
        assert steering.paused_by is None


def test_a_request_to_an_earlier_run_stops_none_whose_first_reading_finds_the_storage_away():
    class Book:
        is_away = True

        def read(self):
            if self.is_away:
                raise optuna.exceptions.StorageInternalError("away")
            return SteeringRequests(stop={"id": "old", "host": "elsewhere", "pid": 1, "by": "somebody"})

    book, stop = Book(), Stop()
    requests = Steering(book, stop, "sim")
    requests.poll()
    book.is_away = False
    requests.poll()
    assert (requests.readings, stop.reason) == (1, None)


def test_what_waits_for_the_storage_does_not_read_requests_from_it():
    class Locked:
        def read(self):
            raise AssertionError("the lock is taken")

    stop = Stop()
    with Steering(Locked(), stop, "sim").followed():
        stop.check()
        with pytest.raises(AssertionError):
            stop.look()


def test_the_hours_of_a_budget_stop_while_a_paused_search_has_nothing_in_flight():
    class Search:
        study = optuna.create_study()
        tally = None  # of no interest here

    clock = ManualClock()
    account = BudgetAccount(BudgetSpec(), Search(), clock=clock)
    for seconds, resting in ((10, True), (50, True), (50, False), (5, False)):
        clock.advance(seconds)
        account.rest(resting)
    assert account.elapsed == 15.0
