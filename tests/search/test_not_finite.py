"""One number that is not finite: what is only shown is left out with its reason, what is required ends the run."""

import json
import math
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState

from evomerge import load_spec, run_search
from evomerge.cli import run_command
from evomerge.errors import InvalidInput, StoppedByFailures
from evomerge.evaluation.synthetic import SyntheticEvaluator
from evomerge.search.run import run_baselines
from evomerge.storage import attributes
from evomerge.study.row_failures import read_left_out
from evomerge.verdict.records import read_verdict


@pytest.fixture
def breaks(monkeypatch):
    """breaks(key, part, value): the row with that key has `value` as its score of the second task there."""
    planted, score, calls = {}, SyntheticEvaluator.score, []

    def broken(self, candidate, items):
        scores = score(self, candidate, items)
        calls.append((candidate.key, items.part))
        value = planted.get((candidate.key.removeprefix("sim/"), items.part))
        if value is None:
            return scores
        outcomes = (value, *scores.tasks["task_1"].outcomes[1:])
        task = replace(scores.tasks["task_1"], value=value, stderr=value, outcomes=outcomes)
        return replace(scores, tasks={**scores.tasks, "task_1": task})

    def plant(key, part, value):
        planted[key, part] = value

    monkeypatch.setattr(SyntheticEvaluator, "score", broken)
    plant.calls, plant.planted = calls, planted
    return plant


def second_best(study):
    winner = study.user_attrs[attributes.WINNER]["trial"]
    others = [trial for trial in study.get_trials() if trial.number != winner]
    return max(others, key=lambda trial: (trial.value, -trial.number)).number


def printed(capsys, *words):
    assert run_command([str(word) for word in words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "value"),
    [("mean of cma", math.nan), ("a trial", math.inf), ("uniform-soup", -math.inf), ("emr", math.nan)],
)
def test_a_row_that_is_only_shown_is_left_out_with_its_reason(write_spec, breaks, capsys, row, value):
    if row == "a trial":
        twin = run_search(load_spec(write_spec("twin.yaml", name="twin", verdict={"best": 1})), ray="none")
        row = f"trial {second_best(twin)}"
    spec = write_spec(baselines=["uniform-soup", "emr"], verdict={"best": 3})
    for each in ("emr/reverse", "emr/sort") if row == "emr" else (row,):
        breaks(f"held-out/{each}", "held_out", value)
    study = run_search(load_spec(spec), ray="none")
    assert read_verdict(study) is not None
    document = json.loads(printed(capsys, "leaderboard", spec, "--json"))
    reason = "cannot be scored" if row == "emr" else f"task 'task_1' scores {value}"
    assert document["left_out"][row].startswith("on the held-out items, ")
    assert document["left_out"][row].endswith(reason)
    assert f"{row} is left out" in " ".join(printed(capsys, "leaderboard", spec).split())
    assert row not in [each["baseline"] for each in document["verdict"]["comparisons"]]
    before = len(breaks.calls)
    run_search(load_spec(spec), ray="none")
    assert len(breaks.calls) == before  # it is not tried again


def test_a_row_that_was_left_out_is_tried_again_by_name(write_spec, breaks):
    spec = load_spec(write_spec(baselines=["uniform-soup", "ties"]))
    breaks("held-out/ties", "held_out", math.nan)
    assert "ties" not in [each.baseline for each in read_verdict(run_search(spec, ray="none")).comparisons]
    breaks.planted.clear()
    study = run_baselines(spec, ["ties"], ray="none")
    assert "ties" in [each.baseline for each in read_verdict(study).comparisons]
    assert read_left_out(optuna.load_study(study_name="sim/held-out", storage="sqlite:///runs/sim/study.db")) == {}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_baseline_without_a_finite_score_is_left_out_with_its_reason(write_spec, breaks, capsys, value):
    spec = write_spec(baselines=["uniform-soup", "ties"])
    breaks("baselines/ties", "search", value)
    assert read_verdict(run_search(load_spec(spec), ray="none")) is not None
    document = json.loads(printed(capsys, "leaderboard", spec, "--json"))
    assert document["left_out"] == {"ties": f"the merge has collapsed: task 'task_1' scores {value}"}


@pytest.mark.parametrize(
    ("aggregate", "value"),
    [("weighted_mean", math.nan), ("geometric_mean", math.inf), ("min", -math.inf), ("pareto", math.nan)],
)
def test_a_source_without_a_finite_score_ends_the_run_with_its_name_and_task(
    write_spec, breaks, capsys, aggregate, value
):
    sampler = "nsgaii" if aggregate == "pareto" else "cma"
    spec = write_spec(objective={"aggregate": aggregate}, sampler=sampler)
    breaks("baselines/sort", "search", value)
    assert run_command(["run", str(spec), "--ray", "none"]) == 2
    error = capsys.readouterr().err
    assert f"source 'sort' has no finite score on the search items: task 'task_1' scores {value}" in error
    breaks.planted.clear()
    assert run_command(["run", str(spec), "--ray", "none"]) == 0


def test_a_source_without_a_finite_score_on_held_out_items_ends_the_run_as_invalid(write_spec, breaks):
    breaks("held-out/sort", "held_out", math.nan)
    with pytest.raises(InvalidInput, match="source 'sort' has no finite score on the held-out items: task 'task_1'"):
        run_search(load_spec(write_spec()), ray="none")


def test_a_winner_without_a_finite_score_ends_the_run_as_failed_with_its_name_and_task(write_spec, breaks):
    for number in range(6):
        breaks(f"held-out/trial {number}", "held_out", math.nan)
    with pytest.raises(StoppedByFailures, match=r"'trial \d' cannot be scored on the held-out items: task 'task_1'"):
        run_search(load_spec(write_spec()), ray="none")


@pytest.mark.parametrize(("aggregate", "value"), [("geometric_mean", -math.inf), ("min", math.inf)])
def test_a_candidate_with_a_task_that_is_not_finite_fails_where_the_objective_is_finite(
    write_spec, breaks, aggregate, value
):
    breaks("2", "search", value)
    spec = write_spec(objective={"aggregate": aggregate})
    trials = run_search(load_spec(spec), ray="none").get_trials()
    assert [trial.number for trial in trials if trial.state is TrialState.FAIL] == [2]
    assert trials[2].user_attrs[attributes.FAILURE] == f"task 'task_1' scores {value}"


def test_standard_errors_and_seconds_that_are_not_finite_are_not_stored(write_spec, monkeypatch):
    score = SyntheticEvaluator.score

    def strange(self, candidate, items):
        scores = score(self, candidate, items)
        tasks = {name: replace(task, stderr=math.nan) for name, task in scores.tasks.items()}
        return replace(scores, tasks=tasks, seconds={"forward": math.inf})

    monkeypatch.setattr(SyntheticEvaluator, "score", strange)
    study = run_search(load_spec(write_spec()), ray="none")
    names = ("sim", "sim/baselines", "sim/held-out")
    studies = [optuna.load_study(study_name=name, storage="sqlite:///runs/sim/study.db") for name in names]
    stored = [trial.user_attrs for each in studies for trial in each.get_trials()]
    json.dumps([study.user_attrs, *stored], allow_nan=False)
    assert stored[0][attributes.SCORES]["objective_stderr"] is None
