"""Callbacks of `run_search`: told of every trial that the run has ended, as those of Optuna are."""

from __future__ import annotations

import optuna
import pytest
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState

from evomerge import build_spec, load_spec, run_search
from evomerge.spec import override
from evomerge.storage import attributes
from evomerge.verdict import read_winner

HALF_FAIL = {"name": "synthetic", "items": 40, "raising": 0.3}


def test_every_trial_is_told_once_in_its_final_state_and_failed_ones_too(write_spec):
    told = []
    spec = load_spec(write_spec(evaluator=HALF_FAIL, sampler="random", budget={"trials": 12}))
    study = run_search(spec, ray="none", callbacks=[lambda study, trial: told.append(trial)])
    assert [trial.number for trial in told] == list(range(12))
    assert {trial.state for trial in told} == {TrialState.COMPLETE, TrialState.FAIL}
    stored = study.trials
    assert [(trial.state, trial.params, trial.value) for trial in told] == [
        (trial.state, trial.params, trial.value) for trial in stored
    ]
    assert all(attributes.FAILURE in trial.user_attrs for trial in told if trial.state is TrialState.FAIL)


def test_several_callbacks_are_called_in_turn_with_the_study_of_the_search(write_spec):
    calls = []

    def first(study, trial):
        calls.append(("first", study.study_name, trial.number, study.trials[trial.number].state))

    def second(study, trial):
        calls.append(("second", study.best_trial.number))

    run_search(load_spec(write_spec(budget={"trials": 2})), ray="none", callbacks=[first, second])
    assert calls[0] == ("first", "sim", 0, TrialState.COMPLETE)
    assert calls[1] == ("second", 0)
    assert len(calls) == 4


def test_a_run_that_goes_on_tells_of_its_own_trials_alone(write_spec):
    spec, told = load_spec(write_spec(budget={"trials": 3})), []
    run_search(spec, ray="none")
    run_search(override(spec, trials=5), ray="none", callbacks=[lambda study, trial: told.append(trial.number)])
    assert told == [3, 4]


def test_what_a_callback_raises_ends_the_run_and_the_next_one_goes_on(write_spec):
    spec, told = load_spec(write_spec(budget={"trials": 4})), []

    def stop(study, trial):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        run_search(spec, ray="none", callbacks=[stop])
    study = run_search(spec, ray="none", callbacks=[lambda study, trial: told.append(trial.number)])
    assert told == [1, 2, 3]
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 4


def test_a_callback_gets_a_copy_that_it_may_change(write_spec):
    def spoil(study, trial):
        trial.params.clear()
        trial.user_attrs.clear()

    study = run_search(load_spec(write_spec(budget={"trials": 2})), ray="none", callbacks=[spoil])
    assert all(trial.params and trial.user_attrs for trial in study.trials)


def test_trials_of_random_search_beside_the_search_are_not_told(write_spec):
    told = []
    spec = load_spec(write_spec(budget={"trials": 3}, baselines=["random-search"]))
    run_search(spec, ray="none", callbacks=[lambda study, trial: told.append(study.study_name)])
    assert told == ["sim"] * 3


def test_pruned_trials_are_told(write_spec):
    told = []
    changes = {"fidelity": "successive_halving", "budget": {"trials": 12}}
    evaluator = {"name": "synthetic", "items": 100}
    spec = load_spec(write_spec(evaluator=evaluator, **changes))
    run_search(spec, ray="none", callbacks=[lambda study, trial: told.append(trial)])
    assert TrialState.PRUNED in {trial.state for trial in told}
    assert len(told) == 12


def test_a_spec_of_keywords_is_that_of_the_file(write_spec, tmp_path):
    import yaml

    path = write_spec()
    assert build_spec(**yaml.safe_load(path.read_text())) == load_spec(path)
    assert isinstance(run_search(build_spec(**yaml.safe_load(path.read_text())), ray="none"), optuna.Study)


def test_a_callback_that_stops_the_study_ends_the_search_with_a_verdict_and_the_next_run_goes_on(write_spec):
    spec = load_spec(write_spec(budget={"trials": 6}))
    study = run_search(spec, ray="none", callbacks=[MaxTrialsCallback(3)])
    attrs = optuna.load_study(study_name="sim", storage=spec.storage_url).user_attrs
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3
    assert attrs[attributes.STATUS]["state"] == "finished"
    assert attrs[attributes.STATUS]["ended"] == "a callback stopped the search"
    assert read_winner(attrs) is not None
    assert len(run_search(spec, ray="none").trials) == 6
    with pytest.raises(RuntimeError, match="supposed to be invoked inside"):
        study.stop()  # as Optuna has it, outside of a callback
