"""Journal files: Optuna finds in them what it would have written, and a transaction is in them whole or not at all."""

import json
import math

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from evomerge.storage.opening import in_transaction, open_storage

SPACE = {
    "x": FloatDistribution(0.0, 1.0),
    "y": FloatDistribution(1e-3, 1.0, log=True),
    "n": IntDistribution(1, 9),
    "method": CategoricalDistribution(("ties", "linear")),
}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "study.journal"


@pytest.fixture
def storage(file):
    return open_storage(f"journal:///{file}", single_writer=True)


def optunas(file):
    return JournalStorage(JournalFileBackend(str(file)))


def create(storage):
    sampler = optuna.samplers.RandomSampler(seed=1)
    return optuna.create_study(storage=storage, study_name="s", load_if_exists=True, sampler=sampler)


def live(storage, together):
    """A study with trials of all states, and with all that a trial can have."""
    study = create(storage)
    study.set_user_attr("of the study", {"a": [1, None]})
    study.enqueue_trial({"x": 0.5, "n": 3})
    study.enqueue_trial({"x": 0.25})
    for number in range(5):
        trial = together(storage, lambda: study.ask(SPACE))

        def fill(trial=trial, number=number):
            trial.set_user_attr("tuple", (1, {"a": [math.pi]}))
            trial.set_user_attr("twice", 1)
            trial.set_user_attr("twice", 2)
            storage.set_trial_system_attr(trial._trial_id, "system", "é")
            trial.report(0.25, 7)
            trial.report(math.inf, number)
            if number < 3:
                study.tell(trial, (1.5, None, -math.inf)[number], state=TrialState.PRUNED if number == 1 else None)
            elif number == 3:
                study.tell(trial, state=TrialState.FAIL)

        together(storage, fill)
    study.add_trial(create_trial(value=2.0, params={"x": 0.5}, distributions={"x": SPACE["x"]}, user_attrs={"u": 1}))


def contents(study):
    return [
        {name: value for name, value in vars(trial).items() if not name.strip("_").startswith("datetime")}
        for trial in study.get_trials()
    ]


@pytest.mark.parametrize("together", [lambda storage, write: write(), in_transaction], ids=["each write", "together"])
def test_optuna_reads_what_it_would_have_written(storage, file, tmp_path, together):
    live(storage, together)
    other = optunas(tmp_path / "optuna.journal")
    live(other, lambda storage, write: write())
    remembered, read = create(storage), create(optunas(file))
    assert contents(read) == contents(create(other))
    assert remembered.get_trials() == read.get_trials()  # the times, too
    assert remembered.user_attrs == read.user_attrs
    again = create(open_storage(f"journal:///{file}"))
    assert again.get_trials() == read.get_trials()


def test_an_ask_is_one_line_with_all_its_params(storage, file):
    study = create(storage)
    before = file.read_bytes()
    in_transaction(storage, lambda: study.ask(SPACE))
    (line,) = file.read_bytes().removeprefix(before).splitlines()
    assert set(json.loads(line)["params"]) == set(SPACE)


def test_a_block_that_raises_leaves_nothing(storage, file):
    study = create(storage)
    in_transaction(storage, lambda: study.ask(SPACE))
    before, trials = file.read_bytes(), study.get_trials()

    def half():
        study.ask(SPACE)
        study.set_user_attr("key", 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_transaction(storage, half)
    assert (file.read_bytes(), study.get_trials(), study.user_attrs) == (before, trials, {})


def test_a_block_is_repeated_where_somebody_else_has_written_meanwhile(storage, file):
    study, other = create(storage), create(optunas(file))
    tries = []

    def ask():
        trial = study.ask(SPACE)
        if not tries:
            other.enqueue_trial({"x": 0.125})
        tries.append(trial.number)
        return trial

    trial = in_transaction(storage, ask)
    assert (tries, trial.params["x"]) == ([0, 0], 0.125)  # the second time it is the one that was enqueued
    assert contents(create(optunas(file))) == contents(study)


def test_attributes_that_somebody_else_writes_are_seen(storage, file):
    study = create(storage)
    create(optunas(file)).set_user_attr("note", "é")
    assert study.user_attrs == {"note": "é"}


def test_trials_that_were_given_out_do_not_change(storage):
    study = create(storage)
    trial = study.ask(SPACE)
    (before,) = study.get_trials(deepcopy=False)
    trial.set_user_attr("later", 1)
    study.tell(trial, 1.0)
    assert (before.user_attrs, before.state) == ({}, TrialState.RUNNING)
    assert [each.number for each in study.get_trials(states=(TrialState.RUNNING,))] == []
