"""A search whose number of workers changes while it runs: no more is proposed than there is room for, and it ends."""

import itertools

import optuna
import pytest
from optuna.trial import TrialState

from evomerge import load_spec, run_search
from evomerge.cluster import InlineExecutor
from evomerge.storage import attributes


@pytest.mark.parametrize(
    "sampler",
    ["cma", {"name": "cma", "generation_mode": "sync"}, "random", "tpe"],
    ids=["cma", "sync", "random", "tpe"],
)
def test_a_search_goes_on_while_workers_come_and_go(write_spec, tmp_path, monkeypatch, sampler):
    rooms = itertools.cycle([3, 3, 1, 0, 0, 4, 2])
    monkeypatch.setattr(InlineExecutor, "capacity", property(lambda self: next(rooms)))
    spec = load_spec(write_spec(sampler=sampler, budget={"trials": 20}, workers={"count": 1}))
    run_search(spec, ray="none")
    trials = optuna.load_study(study_name="sim", storage=f"sqlite:///{tmp_path}/runs/sim/study.db").trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 20
    assert sorted(trial.user_attrs[attributes.TELL] for trial in trials) == list(range(20))
