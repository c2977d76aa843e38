"""The status of a run in its study: new when something has happened, and rarely while nothing does."""

import optuna
import pytest
from loop.test_dispatcher import ScriptedExecutor
from simulation.chained_sampler import ChainedSampler, OneNumber

from evomerge.clock import ManualClock
from evomerge.loop.budget import BudgetAccount
from evomerge.loop.status_reporter import STATUS_SECONDS, UNCHANGED_SECONDS, StatusReporter
from evomerge.spec import BudgetSpec
from evomerge.storage import attributes
from evomerge.storage.opening import open_storage, release
from evomerge.study.search_study import SearchStudy

TURN = 0.5  # seconds between two reports of a controller that waits


class Run:
    """A run of which nothing is left but its reports."""

    def __init__(self, folder):
        self.journal = folder / "study.journal"
        self.storage = open_storage(f"journal:///{self.journal}", single_writer=True)
        self.study = optuna.create_study(storage=self.storage, direction="maximize", sampler=ChainedSampler(0))
        search = SearchStudy(self.study, self.storage, OneNumber(), artifacts=folder / "artifacts")
        self.clock = ManualClock()
        account = BudgetAccount(BudgetSpec(trials=10), search, clock=self.clock)
        self.shown = []
        self.reporter = StatusReporter(
            search, ScriptedExecutor(self.clock), account, self.shown.append, clock=self.clock
        )

    def report(self, in_flight, seconds):
        for _ in range(round(seconds / TURN)):
            self.reporter.report("running", in_flight)
            self.clock.advance(TURN)

    @property
    def stored(self):
        return sum(f'"{attributes.STATUS}":' in line for line in self.journal.read_text().splitlines())

    @property
    def status(self):
        return self.study.user_attrs[attributes.STATUS]


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path)
    yield run
    release(run.storage)


def test_a_run_to_which_nothing_happens_stores_its_status_once_a_minute(run):
    run.report(1, seconds=600)
    assert run.stored == 600 / UNCHANGED_SECONDS
    assert len(run.shown) == 600 / TURN  # whoever shows it has each of them
    assert run.clock.time() - run.status["updated"] <= UNCHANGED_SECONDS


def test_what_has_changed_is_stored_within_two_seconds(run):
    run.report(1, seconds=30)
    run.report(2, seconds=TURN)
    assert (run.stored, run.status["running"]) == (2, 2)
    run.report(3, seconds=STATUS_SECONDS - TURN)
    assert (run.stored, run.status["running"]) == (2, 2)
    run.report(3, seconds=TURN)
    assert (run.stored, run.status["running"]) == (3, 3)
