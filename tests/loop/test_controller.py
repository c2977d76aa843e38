"""The controller over a scripted executor: what it leaves behind for the next run."""

import optuna
import pytest
from loop.test_dispatcher import CRASH, ScriptedExecutor
from simulation.chained_sampler import ChainedSampler, OneNumber, TheValue

from evomerge.clock import ManualClock
from evomerge.errors import Interrupted
from evomerge.loop.controller import Controller
from evomerge.loop.stop import Stop
from evomerge.spec import BudgetSpec
from evomerge.storage.opening import open_storage, release
from evomerge.study.search_study import SearchStudy


def stopped_after_two_crashes(tmp_path, isolated):
    """The attempt that the next run makes of a candidate that has taken two workers down."""
    storage = open_storage(f"journal:///{tmp_path}/study.journal", single_writer=True)
    study = optuna.create_study(storage=storage, direction="maximize", sampler=ChainedSampler(0))
    search = SearchStudy(study, storage, OneNumber(), artifacts=tmp_path / "artifacts")
    clock, stop = ManualClock(), Stop()
    executor = ScriptedExecutor(clock, CRASH, CRASH)
    executor.isolated = isolated
    controller = Controller(search, executor, TheValue(), stop, budget=BudgetSpec(trials=1), clock=clock)
    stop.on_look = lambda: stop.request("SIGTERM") if not executor.results else None
    with pytest.raises(Interrupted):
        controller.run()
    (proposal,) = search.recover(isolated=isolated)
    release(storage)
    return proposal.attempt


@pytest.mark.parametrize("isolated", [True, False])
def test_a_clean_stop_is_no_attempt_and_takes_none_back(tmp_path, isolated):
    assert stopped_after_two_crashes(tmp_path, isolated) == 3
