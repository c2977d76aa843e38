"""Studies that another process may write to: the trials are Optuna's own, and always the latest."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from evomerge.storage.opening import open_storage, release

SPACE = {"x": FloatDistribution(0.0, 1.0), "n": IntDistribution(1, 9), "kind": CategoricalDistribution(["a", None])}


def trial_of(number: int, state: TrialState) -> FrozenTrial:
    return create_trial(
        state=state,
        values=[float(number)] if state is TrialState.COMPLETE else None,
        params={"x": number / 10, "n": number + 1, "kind": None},
        distributions=SPACE,
        user_attrs={"note": {"of": number}},
        system_attrs={"fixed": [number]},
        intermediate_values={0: 0.5, 1: float("inf")},
    )


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    """A study of Optuna's own with one trial in each state."""
    made = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="one")
    for number, state in enumerate(TrialState):
        made.add_trial(trial_of(number, state))
    return made


def test_trials_are_those_of_optuna(study: optuna.Study, tmp_path: Path) -> None:
    read = optuna.load_study(storage=open_storage(f"sqlite:///{tmp_path}/study.db"), study_name="one")
    assert read.trials == study.trials
    assert len(read.trials) == len(TrialState)
    complete = read.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    assert complete == study.get_trials(states=(TrialState.COMPLETE,))


def test_what_another_process_does_is_seen(study: optuna.Study, tmp_path: Path) -> None:
    read = optuna.load_study(storage=open_storage(f"sqlite:///{tmp_path}/study.db"), study_name="one")
    before = read.get_trials(deepcopy=False)
    running = next(trial for trial in study.trials if trial.state is TrialState.RUNNING)
    study.tell(running.number, 0.25)
    study.add_trial(trial_of(5, TrialState.COMPLETE))
    study.ask().suggest_float("x", 0.0, 1.0)  # takes up the trial that waited
    after = read.get_trials(deepcopy=False)
    assert after == study.trials
    assert after[running.number].value == 0.25
    assert before[running.number].state is TrialState.RUNNING  # what was given out stays as it was


def test_finished_trials_are_read_once(study: optuna.Study, tmp_path: Path) -> None:
    read = optuna.load_study(storage=open_storage(f"sqlite:///{tmp_path}/study.db"), study_name="one")
    once, twice = (read.get_trials(deepcopy=False) for _ in range(2))
    first = min(trial.number for trial in once if not trial.state.is_finished())
    assert [one is other for one, other in zip(once, twice, strict=True)] == [
        trial.number < first for trial in once
    ]  # from the first one on that may change


def test_a_study_that_is_not_there_is_a_key_error(study: optuna.Study, tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    with pytest.raises(KeyError):
        storage.get_all_trials(12345)
    release(storage)
