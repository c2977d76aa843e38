"""Rows of trials: the same as Optuna's own, stored and read with a number of statements that does not grow."""

import math
from contextlib import contextmanager

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState, create_trial
from sqlalchemy import event, inspect, text

from evomerge.samplers import build_sampler
from evomerge.storage.opening import in_transaction, open_storage, release
from evomerge.storage.optuna_internals import backend_of
from evomerge.storage.patience import StorageAway
from evomerge.testing.sampler_contract import box

SPACE = {
    "x": FloatDistribution(0.0, 1.0),
    "y": FloatDistribution(1e-3, 1.0, log=True),
    "n": IntDistribution(1, 9),
    "method": CategoricalDistribution(("ties", "linear")),
}
TIMES = ("datetime_start", "datetime_complete")


@contextmanager
def opened(folder, name="study", *, single_writer=True):
    storage = open_storage(f"sqlite:///{folder}/{name}.db", single_writer=single_writer)
    try:
        yield storage
    finally:
        release(storage)


def create(storage, **options):
    options = {"sampler": optuna.samplers.RandomSampler(seed=1), **options}
    return optuna.create_study(storage=storage, study_name="s", load_if_exists=True, **options)


@contextmanager
def statements_of(storage):
    found = []

    def note(connection, cursor, statement, *rest):
        found.append(statement)

    engine = backend_of(storage).engine
    event.listen(engine, "before_cursor_execute", note)
    yield found
    event.remove(engine, "before_cursor_execute", note)


def live(storage, together):
    """A study with trials of all states, and with all that a trial can have."""
    study = create(storage)
    study.set_user_attr("of the study", {"a": [1, None]})
    study.set_user_attr("of the study", [2])
    study.enqueue_trial({"x": 0.5, "n": 3})
    study.enqueue_trial({"x": 0.25})
    for number in range(5):
        trial = together(storage, lambda: study.ask(SPACE))

        def fill(trial=trial, number=number):
            trial.set_user_attr("tuple", (1, {"a": [math.pi]}))
            trial.set_user_attr("twice", 1)
            trial.set_user_attr("twice", 2)
            storage.set_trial_system_attr(trial._trial_id, "system", "é")
            for step, value in ((7, 0.25), (number, math.inf), (9, math.nan)):
                trial.report(value, step)
            if number < 3:
                study.tell(trial, (1.5, None, -math.inf)[number], state=TrialState.PRUNED if number == 1 else None)
            elif number == 3:
                study.tell(trial, state=TrialState.FAIL)

        together(storage, fill)
    study.add_trial(
        create_trial(
            value=2.0,
            params={"x": 0.5, "method": "linear"},
            distributions={"x": SPACE["x"], "method": SPACE["method"]},
            user_attrs={"u": 1},
            system_attrs={"s": 2},
            intermediate_values={1: 3.0},
        )
    )


def one_by_one(storage, write):
    return write()


def rows_of(storage):
    """All rows of all tables, without the times."""
    engine = backend_of(storage).engine
    with engine.connect() as connection:
        return {
            table: [
                {name: value for name, value in row.items() if name not in TIMES}
                for row in connection.execute(text(f"SELECT * FROM {table} ORDER BY 1")).mappings()
            ]
            for table in inspect(engine).get_table_names()
        }


@pytest.mark.parametrize("together", [one_by_one, in_transaction], ids=["each write", "transactions"])
def test_the_rows_are_those_that_optuna_writes(tmp_path, together):
    with opened(tmp_path, "optuna", single_writer=False) as optunas, opened(tmp_path, "ours") as ours:
        live(optunas, one_by_one)
        live(ours, together)
        expected, found = rows_of(optunas), rows_of(ours)
    assert [row["value_type"] for row in found["trial_values"]] == ["FINITE", "INF_NEG", "FINITE"]
    assert found == expected


def test_the_trials_that_are_read_are_those_that_optuna_reads(tmp_path):
    with opened(tmp_path) as storage:
        live(storage, in_transaction)
    with opened(tmp_path, single_writer=False) as optunas, opened(tmp_path) as ours:
        expected, found = create(optunas).get_trials(), create(ours).get_trials()
    for one, other in zip(expected, found, strict=True):
        assert list(one.params) == list(other.params)
        for name, value in vars(one).items():
            assert in_any_order(vars(other)[name]) == in_any_order(value), name


def in_any_order(value):
    """As text, since NaN differs from itself. Optuna reads steps and attributes in the order of an index."""
    return sorted(map(repr, value.items())) if isinstance(value, dict) else repr(value)


def one_trial(storage, study):
    trial = in_transaction(storage, lambda: study.ask(SPACE))
    in_transaction(storage, lambda: trial.set_user_attr("attempt", 1))

    def tell():
        for number in range(8):
            trial.set_user_attr(f"attribute {number}", number)
        study.tell(trial, 1.0)

    in_transaction(storage, tell)


def add_many(storage, study, count):
    template = create_trial(value=1.0, params={"x": 0.5}, distributions={"x": SPACE["x"]}, user_attrs={"u": 1})
    in_transaction(storage, lambda: [study.add_trial(template) for _ in range(count)])


def test_a_trial_takes_as_many_statements_after_hundreds_of_trials_as_at_first(tmp_path):
    with opened(tmp_path) as storage:
        study = create(storage)
        one_trial(storage, study)
        with statements_of(storage) as first:
            one_trial(storage, study)
        add_many(storage, study, 300)
        with statements_of(storage) as later:
            one_trial(storage, study)
    assert later == first
    assert len(first) <= 8, first


def test_going_on_after_two_thousand_trials_takes_a_few_statements(tmp_path):
    space = box(1)
    with opened(tmp_path) as storage:
        add_many(storage, create(storage), 2_000)
    with opened(tmp_path) as storage, statements_of(storage) as statements:
        sampler = build_sampler("cma", {}, seed=1, space=space, workers=1)
        study = create(storage, sampler=sampler)
        assert len(study.get_trials(deepcopy=False)) == 2_000
        in_transaction(storage, lambda: study.ask(dict(space.distributions)))
    assert len(statements) <= 20, statements


def test_a_trial_that_somebody_else_has_enqueued_keeps_its_number_and_is_asked_for(tmp_path):
    with opened(tmp_path) as storage, opened(tmp_path, single_writer=False) as other:
        study = create(storage)
        assert study.ask(SPACE).number == 0
        optuna.load_study(study_name="s", storage=other).enqueue_trial({"x": 0.125})
        assert in_transaction(storage, lambda: study.ask(SPACE)).number == 2
        trial = in_transaction(storage, lambda: study.ask(SPACE))
        assert (trial.number, trial.params["x"]) == (1, 0.125)
        assert [each.number for each in optuna.load_study(study_name="s", storage=other).get_trials()] == [0, 1, 2]


def test_a_trial_that_somebody_else_has_finished_is_not_finished_again(tmp_path):
    with opened(tmp_path) as storage, opened(tmp_path, single_writer=False) as other:
        study = create(storage)
        trial = study.ask(SPACE)
        optuna.load_study(study_name="s", storage=other).tell(trial.number, 1.0)
        with pytest.raises(StorageAway):  # as after every transaction that was not stored, the trials are read again
            study.tell(trial, 2.0)
        assert study.get_trials()[0].value == 1.0
        with pytest.raises(UpdateFinishedTrialError):
            storage.set_trial_user_attr(trial._trial_id, "late", 1)


def test_a_distribution_that_does_not_go_with_the_others_is_refused_as_by_optuna(tmp_path):
    with opened(tmp_path) as storage:
        study = create(storage)
        study.ask(SPACE)
        with pytest.raises(ValueError, match="different distribution kind"):
            study.ask().suggest_int("x", 0, 1)


def test_ids_that_nobody_has_are_refused(tmp_path):
    with opened(tmp_path) as storage:
        with pytest.raises(KeyError):
            storage.get_trial(17)
        with pytest.raises(KeyError):
            storage.get_all_trials(17)
