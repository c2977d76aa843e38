"""The storage of a study's only writer: it remembers what is stored, and a transaction is stored whole or not."""

import math

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from evomerge.clock import ManualClock
from evomerge.storage.opening import in_transaction, open_storage, release
from evomerge.storage.patience import StorageAway, StoragePatience
from evomerge.storage.single_writer import SingleWriterStorage

SPACE = {
    "x": FloatDistribution(0.0, 1.0),
    "y": FloatDistribution(1e-3, 1.0, log=True),
    "n": IntDistribution(1, 9),
    "method": CategoricalDistribution(("ties", "linear")),
}


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture
def storage(url):
    storage = open_storage(url, single_writer=True)
    yield storage
    release(storage)


def create(storage, **options):
    return optuna.create_study(storage=storage, study_name="s", load_if_exists=True, **options)


def contents(trials):
    return [
        (
            trial.number,
            trial.state,
            trial.values,
            trial.params,
            trial.distributions,
            trial.user_attrs,
            trial.system_attrs,
            trial.intermediate_values,
            trial.datetime_start,
            trial.datetime_complete,
        )
        for trial in trials
    ]


def test_what_is_remembered_is_what_another_process_reads(storage, url):
    study = create(storage)
    study.enqueue_trial({"x": 0.5, "n": 3})
    for number in range(6):
        trial = study.ask(SPACE)
        trial.set_user_attr("tuple", (1, {"a": [math.pi]}))
        storage.set_trial_system_attr(trial._trial_id, "system", [1, 2])
        trial.report(0.25, 7)
        storage.set_trial_intermediate_value(trial._trial_id, 7 + number, 0.5)
        if number < 4:
            study.tell(trial, None if number == 3 else float(number), state=TrialState.PRUNED if number == 3 else None)
    reader = open_storage(url)
    try:
        assert contents(study.get_trials()) == contents(optuna.load_study(study_name="s", storage=reader).get_trials())
    finally:
        release(reader)
    assert len(study.get_trials(states=(TrialState.RUNNING,))) == 2


def test_trials_that_were_given_out_do_not_change(storage):
    study = create(storage)
    trial = study.ask(SPACE)
    before = study.get_trials(deepcopy=False)[0]
    trial.set_user_attr("later", 1)
    study.tell(trial, 1.0)
    assert (before.user_attrs, before.state) == ({}, TrialState.RUNNING)
    assert study.get_trials(deepcopy=False)[0].user_attrs == {"later": 1}


def test_nothing_is_read_back(storage):
    study = create(storage)
    for _ in range(5):
        study.ask(SPACE)
    study.get_trials()
    statements = []
    event.listen(storage._backend.engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    for _ in range(10):
        study.get_trials(deepcopy=False)
        storage.get_trial(1)
    assert statements == []


def test_an_ask_is_one_commit(storage):
    study = create(storage)
    study.get_trials()
    commits = []
    event.listen(storage._backend.engine, "commit", commits.append)
    in_transaction(storage, lambda: study.ask(SPACE))
    assert len(commits) == 1


def test_a_block_that_raises_leaves_nothing(storage, url):
    study = create(storage)
    study.get_trials()

    def half() -> None:
        trial = study.ask()
        trial.suggest_float("x", 0.0, 1.0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_transaction(storage, half)
    assert study.get_trials() == []
    assert isinstance(storage, SingleWriterStorage)
    trial = in_transaction(storage, lambda: study.ask(SPACE))
    assert trial.number == 0
    study.tell(trial, 1.0)
    reader = open_storage(url)
    try:
        assert contents(study.get_trials()) == contents(optuna.load_study(study_name="s", storage=reader).get_trials())
    finally:
        release(reader)


def test_a_commit_that_fails_is_tried_again_while_there_is_patience(url):
    storage = open_storage(url, single_writer=True, patience=StoragePatience(clock=ManualClock(), seconds=60.0))
    study = create(storage)
    failures = [1, 1]

    def fail(connection) -> None:
        if failures:
            failures.pop()
            raise OperationalError("COMMIT", {}, Exception("database is locked"))

    event.listen(storage._backend.engine, "commit", fail)
    trial = in_transaction(storage, lambda: study.ask(SPACE))
    assert failures == []
    assert [each.number for each in study.get_trials()] == [trial.number] == [0]
    failures += [1] * 1000
    with pytest.raises(StorageAway, match="another program has locked it, for 1 min 0 s now"):
        in_transaction(storage, lambda: study.ask(SPACE))
    failures.clear()
    assert len(study.get_trials()) == 1
    release(storage)


def test_of_a_block_that_raises_a_journal_has_nothing_either(tmp_path):
    storage = open_storage(f"journal:///{tmp_path}/study.journal", single_writer=True)
    study = create(storage)

    def half() -> None:
        study.ask(SPACE)
        raise StorageInternalError

    with pytest.raises(StorageInternalError):
        in_transaction(storage, half)
    assert study.get_trials() == []
