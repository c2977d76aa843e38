"""Searches in spaces of other merges: corners first, killed and resumed, and never worse than a baseline."""

import json
import multiprocessing
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
import yaml
from optuna.trial import TrialState
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parent))

import killer

from evomerge.baselines.info import BASELINES
from evomerge.cli import run_command
from evomerge.storage import attributes
from evomerge.study.rows import read_records
from evomerge.study.study_ingredients import read_ingredients

MERGES = ["uniform-soup", "task-arithmetic", "ties"]
NEAR = {"name": "near", "around": "task-arithmetic", "groups": {"depth": {"blocks": 2}}}
NEAR = {**NEAR, "factor": {"low": 0.5, "high": 1.5}}


def run(path, *more):
    return run_command(["run", str(path), "--ray", "none", *more])


def study(name="sim"):
    return optuna.load_study(study_name=name, storage="sqlite:///runs/sim/study.db")


def said(capsys):
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture
def real(write_spec, pack):
    """A search of real toy models on few items."""

    def write(**changes):
        content = {"evaluator": str(pack), "dtype": "float32", "baselines": MERGES, "budget": {"trials": 3}}
        return write_spec(**{**content, "space": "baselines-per-block", **changes})

    return write


def test_the_first_trials_are_the_baselines_with_their_scores_and_cost_nothing(real):
    assert run(real()) == 0
    rows = {row.label: row for row in read_records(study("sim/baselines")) if row.label in MERGES}
    best_first = sorted(MERGES, key=lambda label: -rows[label].value)
    trials = study().trials
    assert [trial.user_attrs[attributes.RECIPE] for trial in trials] == [rows[label].digest for label in best_first]
    assert [trial.value for trial in trials] == [rows[label].value for label in best_first]
    assert [trial.user_attrs[attributes.COST]["items"] for trial in trials] == [0, 0, 0]
    assert list(read_ingredients(study()).recipes) == best_first


def test_the_first_trials_have_the_companions_of_their_baselines_by_which_cma_ranks_ties(real, pack, tmp_path):
    counting = shutil.copytree(pack, tmp_path / "counting")
    content = yaml.safe_load((counting / "evaluator.yaml").read_text())
    content["tasks"] = [{"task": "toy_count", "metric": "acc"}]  # multiple choice
    (counting / "evaluator.yaml").write_text(yaml.safe_dump(content))
    assert run(real(evaluator=str(counting), budget={"trials": 4})) == 0
    rows = {row.label: row for row in read_records(study("sim/baselines")) if row.label in MERGES}
    companions = {row.digest: row.trial.user_attrs[attributes.COMPANION] for row in rows.values()}
    *corners, scored = study().trials
    assert all(
        each.user_attrs[attributes.COMPANION] == companions[each.user_attrs[attributes.RECIPE]] for each in corners
    )
    assert scored.user_attrs[attributes.COMPANION] < 0


def test_the_verdict_on_a_winner_that_is_a_baseline_says_so_and_does_not_test_it_against_itself(real, capsys):
    path = real()
    assert run(path) == 0
    capsys.readouterr()
    assert run_command(["leaderboard", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    best = next(row for row in document["rows"] if row["kind"] == "best")
    assert best["is_corner"]
    assert document["verdict"]["corner"] == best["corner"]
    assert best["corner"] not in {each["baseline"] for each in document["verdict"]["comparisons"]}
    assert f"is {best['corner']} itself" in document["verdict"]["sentence"]
    assert run_command(["leaderboard", str(path)]) == 0
    assert f"{best['label']} is {best['corner']} itself." in " ".join(capsys.readouterr().out.split())


def test_a_mixture_is_exported_as_the_weighted_sum_of_the_exported_baselines(real, tmp_path):
    path = real(space="baselines-per-block", budget={"trials": 4})
    assert run(path) == 0
    params = study().trials[3].params
    for which in ("3", *MERGES):
        assert run_command(["export", str(path), "--trial", which, "--out", str(tmp_path / which)]) == 0
    weights = {which: load_file(tmp_path / which / "model.safetensors") for which in ("3", *MERGES)}
    base = load_file(Path(yaml.safe_load(path.read_text())["sources"][0]["location"]) / "model.safetensors")
    for name, block in (("model.layers.0.mlp.up_proj.weight", "0-1"), ("model.layers.5.mlp.up_proj.weight", "4-5")):
        expected = base[name].double()
        for label in MERGES:
            expected += params[f"layers{block}.{label}.weight"] * (weights[label][name] - base[name]).double()
        assert torch.allclose(weights["3"][name].double(), expected, atol=1e-6)


def test_a_search_starts_from_learned_columns_and_multiplies_them(real, tmp_path):
    learned = {"name": "learned-column", "steps": 2, "batch_size": 2}
    path = real(space={**NEAR, "around": "learned-column"}, baselines=["uniform-soup", learned], budget={"trials": 2})
    content = yaml.safe_load(path.read_text())
    for source in content["sources"][1:]:
        source["calibration"] = {"task": f"toy_{source['name']}", "items": 16}
    path.write_text(yaml.safe_dump(content))
    assert run(path) == 0
    row = next(row for row in read_records(study("sim/baselines")) if row.label == "learned-column")
    first, second = study().trials
    assert (first.user_attrs[attributes.RECIPE], first.value) == (row.digest, row.value)
    for which in ("0", "1"):
        assert run_command(["export", str(path), "--trial", which, "--out", str(tmp_path / which)]) == 0
    merged = json.loads((tmp_path / "1" / "recipe.json").read_text())
    assert merged["files"] == row.recipe.files
    assert {rule["method"] for rule in merged["rules"]} == {"column_arithmetic"}
    assert merged["rules"][0]["parameters"]["weight"] == [
        second.params[f"layers0-1.{name}.factor"] for name in ("reverse", "sort")
    ]


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killer", "evomerge.search.run", "evomerge.leaderboard"])
    return context


def killed(processes, path, trials, point=None, trial=-1):
    here = "sqlite:///runs/sim/study.db"  # of the command line: in the working directory
    arguments = ["run", str(path), "--ray", "none", "--trials", str(trials), "--storage", here]
    process = processes.Process(target=killer.run, args=(arguments, point, trial))
    process.start()
    process.join(timeout=240)
    return process.exitcode


def finished():
    trials = [trial for trial in study().trials if not trial.user_attrs.get(attributes.INTERRUPTED)]
    assert all(trial.state is TrialState.COMPLETE for trial in trials)
    return sorted(trials, key=lambda trial: trial.user_attrs[attributes.TELL])


@pytest.mark.parametrize("space", ["baselines-per-block", NEAR], ids=["from", "around"])
def test_kills_among_the_corners_and_after_them_change_nothing(processes, write_spec, tmp_path, monkeypatch, space):
    path = write_spec(space=space, baselines=MERGES)
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert killed(processes, path, 9) == 0
    whole = finished()
    monkeypatch.chdir(tmp_path / "killed")
    for point in ("before the merges are taken", "after the merges are taken"):
        assert killed(processes, path, 9, point) == -9
    for trial, point in ((0, "inside ask"), (1, "between result and tell"), (4, "while scoring")):
        assert killed(processes, path, 9, point, trial) == -9
    assert killed(processes, path, 9) == 0
    again = finished()
    assert [trial.params for trial in again] == [trial.params for trial in whole]
    assert [trial.value for trial in again] == [trial.value for trial in whole]
    assert len(again) == 9


def test_a_change_of_the_baselines_that_the_space_is_made_of_is_refused(write_spec, capsys):
    space = {"space": "baselines-global", "budget": {"trials": 2}}
    assert run(write_spec(baselines=MERGES, **space)) == 0
    capsys.readouterr()
    for others in (MERGES[:2], ["uniform-soup", {"name": "task-arithmetic", "weights": [0.4]}, "ties"]):
        assert run(write_spec(baselines=others, **space), "--trials", "3") == 4
        assert "baselines of the space" in said(capsys)
    assert run(write_spec(baselines=[*MERGES, "random-search"], **space), "--trials", "3") == 0


def test_a_baseline_that_is_another_one_now_is_refused(write_spec, capsys, monkeypatch):
    path = write_spec(space=NEAR, baselines=MERGES, budget={"trials": 2})
    assert run(path) == 0
    capsys.readouterr()
    row = next(row for row in read_records(study("sim/baselines")) if row.label == "uniform-soup")
    made = next(row for row in read_records(study("sim/baselines")) if row.label == "task-arithmetic")
    number = study("sim/baselines").ask().number
    storage = study("sim/baselines")._storage
    trial = storage.get_trial_id_from_study_id_trial_number(study("sim/baselines")._study_id, number)
    for key, value in {**row.trial.user_attrs, attributes.LABEL: made.label, attributes.MADE: made.made}.items():
        storage.set_trial_user_attr(trial, key, value)
    artifact = next(iter(row.trial.system_attrs.items()))
    storage.set_trial_system_attr(trial, *artifact)
    study("sim/baselines").tell(number, 0.5)
    assert run(path, "--trials", "3") == 2
    assert f"made of task-arithmetic with recipe {made.digest[:12]}, but it is {row.digest[:12]} now" in said(capsys)


@pytest.fixture
def broken(monkeypatch):
    """broken(names): let these baselines fail."""

    def fail(*names):
        for name in names:
            monkeypatch.setitem(BASELINES, name, replace(BASELINES[name], plan="broken_plan:fail"))

    return fail


def test_a_baseline_that_cannot_be_made_has_no_weight_and_its_reason_is_said(write_spec, broken, capsys):
    broken("ties")
    path = write_spec(space="baselines-global", baselines=MERGES)
    assert run(path, "--trials", "5") == 0
    assert "the space has no ties, whose weights stay 0: planted failure" in said(capsys)
    trials = study().trials
    assert {trial.params["ties.weight"] for trial in trials} == {0.0}
    assert [sorted(trial.params.values()) for trial in trials[:2]] == [[0.0, 0.0, 1.0]] * 2
    stored = read_ingredients(study())
    assert set(stored.recipes) == {"uniform-soup", "task-arithmetic"}
    assert "planted failure" in stored.left_out["ties"]
    assert run(path, "--trials", "6") == 0


def test_a_space_of_which_nothing_could_be_made_is_refused_with_the_reasons(write_spec, broken, capsys):
    broken("ties", "task-arithmetic")
    assert run(write_spec(space="baselines-global", baselines=["task-arithmetic", "ties"])) == 2
    assert "none of them could be made (task-arithmetic: planted failure; ties: planted failure)" in said(capsys)
    assert not study().trials


def test_the_recipe_of_an_export_can_be_searched_around(write_spec, tmp_path, capsys):
    first = write_spec("first.yaml", name="first", budget={"trials": 2})
    assert run(first) == 0
    assert run_command(["export", str(first), "--trial", "1", "--out", str(tmp_path / "one")]) == 0
    space = {**NEAR, "around": "one/recipe.json"}
    path = write_spec(space=space, baselines=["uniform-soup"], budget={"trials": 2})
    assert run(path) == 0
    stored = study().trials[0].user_attrs[attributes.RECIPE]
    assert stored == json.loads((tmp_path / "one" / "recipe.json").read_text())["digest"]
    shutil.rmtree(tmp_path / "one")  # the study has it
    assert run(path, "--trials", "3") == 0
    capsys.readouterr()
    assert run(write_spec(name="again", space=space)) == 2
    assert "one/recipe.json' cannot be read" in said(capsys)
    assert not Path("runs/again").exists()


def test_a_recipe_whose_rules_say_no_merge_is_neither_searched_around_nor_a_start(write_spec, tmp_path, capsys):
    first = write_spec("first.yaml", name="first", budget={"trials": 1})
    assert run(first) == 0
    assert run_command(["export", str(first), "--trial", "0", "--out", str(tmp_path / "one")]) == 0
    recipe = json.loads((tmp_path / "one" / "recipe.json").read_text())
    del recipe["digest"]
    recipe["rules"][0]["options"] = {"normalise": False}
    (tmp_path / "one" / "recipe.json").write_text(json.dumps(recipe))
    around = {"space": {**NEAR, "around": "one/recipe.json"}}
    for more in (around, {"warm_start": {"recipes": ["one/recipe.json"]}}):
        assert run_command(["check", str(write_spec(name="again", **more))]) == 2
        told = said(capsys)
        assert "one/recipe.json" in told or "the recipe recipe.json" in told
        assert "rules[0]" in told
        assert "'normalise'" in told


@pytest.mark.parametrize(
    ("space", "more", "message"),
    [
        ({**NEAR, "around": "ties"}, {}, "is no weighted sum of the sources"),
        ({**NEAR, "around": "random-search"}, {}, "is no weighted sum of the sources"),
        ({**NEAR, "around": "task-arithmetics"}, {}, "did you mean 'task-arithmetic'"),
        ({**NEAR, "around": "greedy-soup"}, {}, "name it among the baselines"),
        ("baselines-global", {"baselines": []}, "the spec names none"),
        ({**NEAR, "methods": {"ties": {}}}, {}, "give groups and factor alone"),
    ],
)
def test_a_space_that_cannot_be_made_is_refused_before_anything_is_written(write_spec, capsys, space, more, message):
    path = write_spec(**{"space": space, "baselines": MERGES, **more})
    for command in (["run", str(path), "--ray", "none"], ["check", str(path)]):
        assert run_command(command) == 2
        assert message in said(capsys)
    assert not Path("runs").exists()


def test_check_and_status_know_the_space(write_spec, capsys):
    path = write_spec(space="baselines-per-block", baselines=MERGES)
    assert run_command(["check", str(path), "--json"]) == 0
    space = json.loads(capsys.readouterr().out)["space"]
    assert space["merges"] == MERGES
    assert space["dimensions"] == 9
    assert run_command(["check", str(path)]) == 0
    assert "starts at: the best of uniform-soup, task-arithmetic, ties" in capsys.readouterr().out
    assert run_command(["spaces", "baselines-per-block", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["spaces"][0]["from"] == "baselines"


def test_a_warm_start_by_baselines_adds_nothing_and_one_by_another_study_of_other_merges_is_refused(write_spec, capsys):
    first = {"name": "sim", "space": NEAR, "baselines": MERGES}
    assert run(write_spec(**first, warm_start={"baselines": 3}), "--trials", "2") == 0
    assert set(study().trials[0].params.values()) == {1.0}
    assert set(study().trials[1].params.values()) != {1.0}
    capsys.readouterr()
    other = {"studies": [{"name": "sim", "storage": "sqlite:///runs/sim/study.db"}]}
    second = {**first, "name": "other", "space": {**NEAR, "around": "uniform-soup"}}
    assert run(write_spec(**second, warm_start=other)) == 2
    assert "the merges of study 'sim' are not those of this search" in said(capsys)


def test_with_several_objectives_every_baseline_is_a_reference_point_of_the_space(write_spec):
    path = write_spec(space="baselines-global", baselines=MERGES, objective={"aggregate": "pareto"})
    assert run(path, "--trials", "3") == 0
    goals = json.loads("".join(_chunks(study(), attributes.GOALS)))
    goals = json.loads(goals)
    assert all(sorted(each["params"].values()) == [0.0, 0.0, 1.0] for each in goals)
    assert len(goals) == 3


def _chunks(found, key):
    return [found.user_attrs[f"{key}:{number}"] for number in range(1, found.user_attrs[key]["chunks"] + 1)]
