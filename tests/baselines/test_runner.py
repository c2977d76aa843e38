"""Baselines made beside a search: stored step by step, gone on with after a kill, taken into the verdict."""

import json
import os
import signal
import subprocess
import sys

import optuna
import pytest
from optuna.trial import TrialState

from evomerge import load_spec, run_search
from evomerge.cli import run_command
from evomerge.errors import Interrupted, InvalidInput, StoppedByFailures
from evomerge.evaluation.synthetic import SyntheticEvaluator
from evomerge.leaderboard import leaderboard
from evomerge.objective import Objective
from evomerge.search.run import Listener, run_baselines
from evomerge.storage import attributes
from evomerge.study.rows import Records, read_records
from evomerge.study.stored_search import read_search
from evomerge.verdict.records import read_verdict

MERGED = ["uniform-soup", "greedy-soup", "task-arithmetic", "ties", "dare-ties"]


def study_of(folder, name):
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/runs/sim/study.db")


def labels(folder, sibling="baselines"):
    return [row.label for row in read_records(study_of(folder, f"sim/{sibling}"))]


@pytest.fixture
def scored(monkeypatch):
    """The key of every job that was scored, in order."""
    keys = []
    score = SyntheticEvaluator.score

    def noted(self, candidate, items):
        keys.append(candidate.key)
        return score(self, candidate, items)

    monkeypatch.setattr(SyntheticEvaluator, "score", noted)
    return keys


def test_the_uniform_soup_is_scored_before_the_first_trial_and_the_others_after_the_last(write_spec, scored):
    run_search(load_spec(write_spec(baselines=MERGED)), ray="none")
    first, last = scored.index("sim/0"), scored.index("sim/5")
    early = [key for key in scored[:first] if key.startswith("sim/baselines/")]
    assert early == [f"sim/baselines/{name}" for name in ("base", "reverse", "sort", "uniform-soup")]
    assert not [key for key in scored[first:last] if key.startswith("sim/baselines/")]
    assert [key for key in scored[last:] if key.startswith("sim/held-out/")] == scored[-len(labels_held_out(scored)) :]


def labels_held_out(keys):
    return [key.removeprefix("sim/held-out/") for key in keys if key.startswith("sim/held-out/")]


def test_winner_other_best_trials_mean_sources_and_baselines_are_scored_on_held_out_items(write_spec, scored):
    study = run_search(load_spec(write_spec(baselines=MERGED, verdict={"best": 3})), ray="none")
    shown = labels_held_out(scored)
    winner = study.user_attrs[attributes.WINNER]["trial"]
    assert shown[0] == f"trial {winner}"
    assert len([label for label in shown if label.startswith("trial ")]) == 3
    assert shown[3:] == ["mean of cma", "base", "reverse", "sort", *MERGED]


def test_a_killed_run_goes_on_with_the_steps_that_were_not_stored(write_spec, scored, monkeypatch, tmp_path):
    spec = load_spec(write_spec(baselines=MERGED))
    add = Records.add

    def killed_at_the_fifth_point(self, row, number=None):
        if row.label == "task-arithmetic/0.5":
            raise KeyboardInterrupt
        return add(self, row, number)

    monkeypatch.setattr(Records, "add", killed_at_the_fifth_point)
    with pytest.raises(KeyboardInterrupt):
        run_search(spec, ray="none")
    monkeypatch.setattr(Records, "add", add)
    before = {f"sim/baselines/{label}" for label in labels(tmp_path)}
    del scored[:]
    run_search(spec, ray="none")
    assert not before & set(scored)
    assert "sim/baselines/task-arithmetic/0.5" in scored
    assert set(MERGED) <= set(labels(tmp_path))


def test_running_again_makes_and_scores_nothing_twice(write_spec, scored):
    spec = load_spec(write_spec(baselines=MERGED))
    run_search(spec, ray="none")
    del scored[:]
    run_search(spec, ray="none")
    assert scored == []


def test_other_settings_make_a_baseline_anew(write_spec, scored, tmp_path):
    run_search(load_spec(write_spec(baselines=["ties"])), ray="none")
    del scored[:]
    run_search(load_spec(write_spec(baselines=[{"name": "ties", "density": 0.5}])), ray="none")
    assert scored == ["sim/baselines/ties", "sim/held-out/ties"]
    assert labels(tmp_path).count("ties") == 2


def test_settings_that_come_back_bring_their_baseline_back(write_spec, tmp_path, scored):
    for density in (0.2, 0.5, 0.2):
        path = write_spec(baselines=[{"name": "ties", "density": density}])
        run_search(load_spec(path), ray="none")
    (line,) = [line for line in leaderboard(read_search(load_spec(path))) if line.label == "ties"]
    first = next(row for row in read_records(study_of(tmp_path, "sim/baselines")) if row.label == "ties")
    assert line.recipe == first.digest
    assert len(study_of(tmp_path, "sim").user_attrs[attributes.LOOKS]) == 3  # each comparison is a look
    verdict = read_verdict(study_of(tmp_path, "sim"))
    assert verdict.looks == 3
    assert {each.look for each in verdict.comparisons} == {1}  # and its words stand in later ones


def test_what_a_look_found_stands_whatever_was_compared_between_and_a_killed_run_finds_the_same(write_spec, tmp_path):
    def verdict_after(**changes):
        run_search(load_spec(write_spec(**changes)), ray="none")
        return read_verdict(study_of(tmp_path, "sim"))

    first = verdict_after(baselines=["uniform-soup"])
    second = verdict_after(baselines=["uniform-soup", "ties"])
    assert [each.look for each in second.comparisons] == [1, 1, 2]
    assert second.comparisons[:2] == first.comparisons
    study = study_of(tmp_path, "sim")
    for lost in (attributes.VERDICT, attributes.COMPARED):  # killed before one of them was written
        study.set_user_attr(lost, None)
        assert verdict_after(baselines=["uniform-soup", "ties"]).comparisons[2] == second.comparisons[2]
    third = verdict_after(baselines=["uniform-soup", "ties"], verdict={"margin": 0.02})
    assert third.looks == 3
    assert [each.adjusted_p for each in third.comparisons] == [each.adjusted_p for each in second.comparisons]
    assert all(each.equivalence_p is not None for each in third.comparisons)


def test_an_unfinished_search_shows_nothing_on_held_out_items(write_spec, scored, tmp_path):
    run_search(load_spec(write_spec()), ray="none")
    spec = load_spec(write_spec(budget={"trials": 12}))
    told = []

    def stop(status):
        told.append(status.finished)
        if status.finished == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run_search(spec, ray="none", listener=Listener(on_status=stop))
    del scored[:]
    run_baselines(spec, ["ties"], ray="none")
    assert "sim/baselines/ties" in scored
    assert labels_held_out(scored) == []
    run_search(spec, ray="none")
    assert "ties" in labels_held_out(scored)
    winner = study_of(tmp_path, "sim").user_attrs[attributes.WINNER]
    assert winner["finished"] == 12
    assert read_verdict(read_search(spec).study).trial == winner["trial"]


def test_a_random_search_that_fails_does_not_hide_the_verdict(write_spec, monkeypatch, tmp_path):
    def fails(*args, **kwargs):
        raise StoppedByFailures("most candidates failed")

    monkeypatch.setattr("evomerge.search.stages.random_search", fails)
    study = run_search(load_spec(write_spec(baselines=["random-search"])), ray="none")
    assert read_verdict(study) is not None


def test_a_collapsed_merge_is_a_step_that_failed(write_spec, monkeypatch, tmp_path):
    value, score, collapsed = Objective.value, SyntheticEvaluator.score, []

    def overflows(self, scores):
        if any(scores is each for each in collapsed):
            raise OverflowError
        return value(self, scores)

    def watched(self, candidate, items):
        scores = score(self, candidate, items)
        collapsed.extend([scores] * candidate.key.endswith("task-arithmetic/1"))
        return scores

    monkeypatch.setattr(Objective, "value", overflows)
    monkeypatch.setattr(SyntheticEvaluator, "score", watched)
    run_search(load_spec(write_spec(baselines=["task-arithmetic"])), ray="none")
    assert "task-arithmetic" in labels(tmp_path)
    assert "task-arithmetic/1" not in labels(tmp_path)


def test_the_baseline_command_makes_one_and_the_verdict_takes_it_in(write_spec, capsys, tmp_path):
    spec = write_spec()
    run_search(load_spec(spec), ray="none")
    assert (
        run_command(["baseline", str(spec), "--name", "ties", "--name", "greedy-soup", "--ray", "none", "--json"]) == 0
    )
    document = json.loads(capsys.readouterr().out)
    compared = [each["baseline"] for each in document["verdict"]["comparisons"]]
    assert {"uniform-soup", "ties", "greedy-soup"} <= set(compared)
    assert {"ties", "greedy-soup"} <= {row["label"] for row in document["rows"] if row["kind"] == "baseline"}


def test_the_baseline_command_before_the_search_scores_nothing_on_held_out_items(write_spec, scored, tmp_path):
    run_baselines(load_spec(write_spec()), ["ties"], ray="none")
    assert "sim/baselines/ties" in scored
    assert labels_held_out(scored) == []
    assert study_of(tmp_path, "sim").get_trials() == [] or all(
        trial.state is TrialState.WAITING for trial in study_of(tmp_path, "sim").get_trials()
    )


def test_random_search_has_the_budget_of_the_search_and_a_study_of_its_own(write_spec, tmp_path):
    spec = load_spec(write_spec(baselines=["random-search"]))
    run_search(spec, ray="none")
    trials = study_of(tmp_path, "sim/random-search").get_trials()
    assert len(trials) == spec.budget.trials
    (row,) = [row for row in read_records(study_of(tmp_path, "sim/baselines")) if row.label == "random-search"]
    assert row.value == max(trial.value for trial in trials)
    assert row.cost.candidates == spec.budget.trials


def test_random_search_before_the_search_has_no_budget_to_get(write_spec):
    with pytest.raises(InvalidInput, match="run the search first"):
        run_baselines(load_spec(write_spec()), ["random-search"], ray="none")


def test_a_stop_while_baselines_are_made_is_one_that_goes_on(write_spec, monkeypatch, tmp_path):
    spec = load_spec(write_spec(baselines=MERGED))
    add = Records.add

    def stopped(self, row, number=None):
        if row.label == "task-arithmetic/0.3":
            os.kill(os.getpid(), signal.SIGTERM)
        return add(self, row, number)

    monkeypatch.setattr(Records, "add", stopped)
    with pytest.raises(Interrupted):
        run_search(spec, ray="none")
    monkeypatch.setattr(Records, "add", add)
    run_search(spec, ray="none")
    assert set(MERGED) <= set(labels(tmp_path))


def test_the_cost_of_a_baseline_is_that_of_its_steps(write_spec, tmp_path):
    run_search(load_spec(write_spec(baselines=MERGED)), ray="none")
    cost = {row.label: row.cost for row in read_records(study_of(tmp_path, "sim/baselines")) if row.made is not None}
    assert {name: each.candidates for name, each in cost.items()} == {
        "uniform-soup": 0,
        "greedy-soup": 2 + 1,  # two experts, and one soup of both
        "task-arithmetic": 10,
        "ties": 0,
        "dare-ties": 0,
    }
    assert cost["task-arithmetic"].seconds > 0
    assert cost["task-arithmetic"].peak_bytes > 10**7


def test_the_verdict_is_stored_printed_and_shown_as_a_note_by_optuna_dashboard(write_spec, capsys, monkeypatch):
    path = write_spec(baselines=MERGED)
    spec = load_spec(path)
    study = run_search(spec, ray="none")
    verdict = read_verdict(read_search(spec).study)
    assert verdict is not None
    assert verdict.sentence
    monkeypatch.setenv("COLUMNS", "80")
    assert run_command(["leaderboard", str(path)]) == 0
    printed = capsys.readouterr().out
    assert verdict.sentence in " ".join(printed.split())
    assert "…  " not in printed  # no column is cut
    assert "what it took to choose it" in printed
    code = (
        "import sys, optuna, optuna_dashboard; "
        "print(optuna_dashboard.get_note(optuna.load_study(study_name='sim', storage=sys.argv[1])))"
    )
    storage = "sqlite:///runs/sim/study.db"
    note = subprocess.run([sys.executable, "-c", code, storage], capture_output=True, text=True, check=True).stdout
    assert verdict.sentence in note
    assert "| uniform-soup |" in note
    assert [trial for trial, _ in study.user_attrs[attributes.LOOKS]] == [verdict.trial]


def test_a_search_whose_best_is_pure_luck_is_called_that(write_spec, capsys):
    spec = write_spec(
        evaluator={"name": "synthetic", "function": "noise", "items": 1000},
        sampler="random",
        budget={"trials": 40},
        baselines=MERGED,
    )
    assert run_command(["run", str(spec), "--ray", "none", "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)["verdict"]
    assert "luck" in verdict["sentence"]
    assert verdict["lead"]["luck"] or verdict["lead"]["by_chance"] > 0.05
    assert not [each for each in verdict["comparisons"] if each["outcome"] == "beats"]
