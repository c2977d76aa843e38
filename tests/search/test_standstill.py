"""A sampler that waits for generations, and a proposal in the study that nobody is scoring."""

import pytest
from optuna.trial import TrialState

from evomerge import load_spec, run_search
from evomerge.errors import StoppedByFailures
from evomerge.study.search_study import SearchStudy

SYNC = {"sampler": {"name": "cma", "popsize": 3, "generation_mode": "sync"}, "budget": {"trials": 6}}


@pytest.fixture
def orphans(monkeypatch):
    """The first proposal is left in the study, and the controller knows only of the second one."""
    ask, made = SearchStudy.ask, []

    def twice(self):
        if not made:
            made.append(ask(self).number)
        return ask(self)

    monkeypatch.setattr(SearchStudy, "ask", twice)
    return made


def test_it_is_scored_before_the_search_would_stand_still(write_spec, orphans):
    study = run_search(load_spec(write_spec(**SYNC)), ray="none")
    assert orphans == [0]
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 6


def test_where_nothing_can_go_on_the_search_ends_with_the_reason(write_spec, orphans, monkeypatch):
    monkeypatch.setattr(SearchStudy, "recover", lambda self, **options: [])
    with pytest.raises(StoppedByFailures, match="waits for results, and no trial is in flight"):
        run_search(load_spec(write_spec(**SYNC)), ray="none")
