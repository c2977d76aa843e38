"""Several objectives and constraints in a whole search: the front, what counts as best, and going on."""

import io
import re

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from evomerge.cli import run_command
from evomerge.errors import InvalidInput
from evomerge.leaderboard import Line, PartScore, _betters, leaderboard, leaderboard_document, pareto_front
from evomerge.report.tables import _front, leaderboard_tables
from evomerge.samplers.reference_points import read_reference_points
from evomerge.search.run import run_search
from evomerge.spec import load_spec, override
from evomerge.storage import attributes
from evomerge.study.rows import read_records
from evomerge.study.stored_search import read_search
from evomerge.study.trials import best_trials, value_of
from evomerge.verdict import read_winner

EVALUATOR = {"name": "synthetic", "items": 200, "conflict": 0.2, "tasks": 3}
PARETO = {"evaluator": EVALUATOR, "objective": {"aggregate": "pareto"}, "sampler": "nsgaii"}


def search(path, **changes):
    return run_search(override(load_spec(path), **changes), ray="none")


def dominates(one, other):
    return all(a >= b for a, b in zip(one, other, strict=True)) and one != other


def test_every_task_is_an_objective_and_the_mean_names_the_best(write_spec):
    path = write_spec(**PARETO)
    study = search(path, trials=40)
    trials = study.get_trials()
    assert len(study.directions) == 3
    assert study.metric_names == ["task_0", "task_1", "task_2"]
    for trial in trials:
        assert value_of(trial) == pytest.approx(sum(trial.values) / 3)
    front = pareto_front(study)
    assert {trial.number for trial in front} == {
        trial.number for trial in trials if not any(dominates(other.values, trial.values) for other in trials)
    }
    best = max(trials, key=lambda trial: (value_of(trial), -trial.number))
    assert best_trials(study, 1) == [best]
    assert read_winner(study.user_attrs).trial == best.number

    stored = read_search(load_spec(path))
    lines = leaderboard(stored)
    assert {line.trial for line in lines if line.front} == {trial.number for trial in front}
    assert leaderboard_document(stored, lines)["rows"]
    console = recording_console()
    console.print(leaderboard_tables(stored, lines))
    assert "Pareto front" in console.export_text()


def test_the_front_says_which_baselines_it_betters_and_hides_no_row_that_was_held_out(write_spec):
    evaluator = {**EVALUATOR, "tasks": 6}  # so that the front is long
    path = write_spec(**{**PARETO, "evaluator": evaluator, "baselines": ["uniform-soup", "ties"]})
    search(path, trials=40)
    stored = read_search(load_spec(path))
    lines = leaderboard(stored)
    baselines = {line.label: values_of(line) for line in lines if line.kind == "baseline"}
    front = [line for line in lines if line.front]
    for line in front:
        assert set(line.betters) == {name for name, other in baselines.items() if dominates(values_of(line), other)}
    assert all(not line.betters for line in lines if not line.front)
    console = recording_console()
    console.print(leaderboard_tables(stored, lines))
    objective, _, _ = console.export_text().partition("every task")
    shown = {line.label for line in lines if re.search(rf"{line.label}\b", objective)}
    assert shown == {line.label for line in lines if line.held_out}
    assert len(front) > len(shown & {line.label for line in front})


def test_the_table_of_the_front_has_a_point_for_every_baseline_that_is_bettered():
    def line(label, trial, values, **more):
        tasks = {name: {"value": value, "higher_is_better": name != "loss"} for name, value in values.items()}
        search = PartScore(0.0, None, tasks)
        return Line(
            label=label, kind="trial", trial=trial, recipe="", search=search, held_out=None, seconds=None, **more
        )

    soup, ties = line("soup", None, {"a": 0.5, "loss": 2.0}), line("ties", None, {"a": 0.8, "loss": 1.0})
    assert _betters(line("", 1, {"a": 0.5, "loss": 1.9}), soup)
    assert not _betters(line("", 1, {"a": 0.5, "loss": 2.0}), soup)  # the same is not better
    assert not _betters(line("", 1, {"a": 0.9, "loss": 1.1}), ties)
    many = [line(f"trial {n}", n, {"a": 0.6, "loss": 1.5}, front=True, betters=("soup",)) for n in range(40)]
    rare = line("trial 99", 99, {"a": 0.8, "loss": 0.9}, front=True, betters=("ties",))
    console = recording_console()
    console.print(*_front([soup, ties, *many, rare]))
    text = console.export_text()
    assert text.index("trial 99") < text.index("trial 0 ")
    assert "trial 18 " in text
    assert "trial 19 " not in text
    assert "and 21 more" in text


def values_of(line):
    return [task["value"] for task in line.search.tasks.values()]


def test_the_goals_of_cma_are_the_baselines_with_their_places_in_the_space(write_spec):
    path = write_spec(**{**PARETO, "sampler": "cma", "baselines": ["uniform-soup", "ties", "task-arithmetic"]})
    study = search(path, trials=20)
    stored = read_search(load_spec(path))
    baselines = {row.label: [task["value"] for task in row.tasks.values()] for row in read_records(stored.baselines)}
    goals = read_reference_points(study)
    assert sorted(list(goal.values) for goal in goals) == sorted(
        baselines[name] for name in ("uniform-soup", "ties", "task-arithmetic")
    )
    assert sum(goal.params is not None for goal in goals) == 2  # ties is no point of the space
    assert search(path, trials=22).trials[-1].number == 21  # goes on
    assert read_reference_points(study) == goals


def recording_console():
    return Console(record=True, width=140, file=io.StringIO())


@pytest.mark.parametrize("sampler", ["cma", "nsgaii", "nsgaiii", "tpe"])
def test_a_search_of_several_objectives_goes_on(write_spec, sampler):
    changes = {**PARETO, "sampler": sampler}
    whole = search(write_spec("whole.yaml", name="whole", **changes), trials=14)
    path = write_spec("pieces.yaml", name="pieces", **changes)
    for trials in (3, 9, 14):
        pieces = search(path, trials=trials)
    assert [trial.params for trial in pieces.trials] == [trial.params for trial in whole.trials]


def test_the_best_meets_the_constraints(write_spec):
    constraints = [{"task": "task_1", "at_least": "best-source", "tolerance": 0.05}, {"task": "all", "at_least": 0.1}]
    free = search(write_spec("free.yaml", name="free", evaluator=EVALUATOR, sampler="tpe"), trials=25)
    path = write_spec(evaluator=EVALUATOR, sampler="tpe", objective={"constraints": constraints})
    study = search(path, trials=25)
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    assert all(len(trial.user_attrs[attributes.VIOLATIONS]) == 4 for trial in complete)
    feasible = [trial for trial in complete if max(trial.user_attrs[attributes.VIOLATIONS]) <= 0]
    assert 0 < len(feasible) < len(complete)
    best = max(feasible, key=lambda trial: (trial.value, -trial.number))
    assert read_winner(study.user_attrs).trial == best.number == study.best_trial.number
    assert attributes.VIOLATIONS not in free.best_trial.user_attrs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"aggregate": "pareto"}, "baselines": []}, "name some, or use nsgaii"),
        ({"objective": {"aggregate": "pareto"}, "baselines": ["random-search"]}, "name some, or use nsgaii"),
        ({"objective": {"aggregate": "pareto"}, "sampler": "tpe", "fidelity": "race"}, "pareto has several"),
        ({"objective": {"constraints": [{"at_least": 0.1}]}}, "cma"),
        ({"objective": {"constraints": [{"task": "task_9", "at_least": 0.1}]}, "sampler": "tpe"}, "task_9"),
        ({"objective": {"constraints": [{"at_least": "best"}]}}, "at_least"),
        ({"objective": {"aggregate": "min", "reference": "min"}}, "reference belongs to aggregate pareto"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(write_spec, tmp_path, changes, message):
    with pytest.raises(InvalidInput, match=message):
        search(write_spec(**changes))
    assert not (tmp_path / "runs").exists()


def test_export_takes_any_trial_of_the_front(write_spec, tmp_path):
    path = write_spec(**PARETO)
    study = search(path, trials=8)
    trial = pareto_front(study)[-1].number
    assert run_command(["export", str(path), "--trial", str(trial), "--out", str(tmp_path / "model")]) == 0
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert isinstance(study, optuna.Study)


def test_nothing_that_misses_a_constraint_reaches_the_target_and_the_leaderboard_says_so(write_spec):
    objective = {"constraints": [{"at_least": 2.0}]}  # nothing scores that
    budget = {"trials": 5, "target": 0.01, "patience": 1}
    path = write_spec(evaluator=EVALUATOR, sampler="tpe", objective=objective, budget=budget)
    study = search(path)
    assert len(study.get_trials()) == 5
    stored = read_search(load_spec(path))
    console = recording_console()
    console.print(leaderboard_tables(stored, leaderboard(stored)))
    assert "No trial meets all constraints" in console.export_text()
