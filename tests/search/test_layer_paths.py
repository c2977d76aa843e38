"""Searches over layer paths: scored at several depths, refused over the budget, killed, resumed, exported."""

import json
import multiprocessing
import shutil
import sys
from pathlib import Path

import optuna
import pytest
import torch
import yaml
from optuna.trial import TrialState
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

sys.path.append(str(Path(__file__).parent))

import killer

from evomerge import load_spec
from evomerge.artefacts import write_model
from evomerge.cli import run_command
from evomerge.evaluation.evaluator import Candidate
from evomerge.jobs import Score, Scored
from evomerge.opening.inputs import open_inputs
from evomerge.packs.items import ItemBlock
from evomerge.recipe import PathLayer, Recipe
from evomerge.storage import attributes
from evomerge.study.trials import best_trials
from evomerge.worker import Worker

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def pack(tmp_path):
    """The toy skills with two tasks and few items."""
    folder = tmp_path / "two-skills"
    shutil.copytree(ROOT / "evaluators" / "toy-skills", folder)
    content = yaml.safe_load((folder / "evaluator.yaml").read_text())
    content["tasks"] = [task for task in content["tasks"] if task["task"] in ("toy_reverse", "toy_sort")]
    (folder / "evaluator.yaml").write_text(yaml.safe_dump({**content, "name": "two-skills"}))
    for items in (folder / "items").iterdir():
        lines, left = [], {"calibration": 4, "search": 12, "held_out": 12}
        for line in items.read_text().splitlines(keepends=True):
            part = json.loads(line)["part"]
            left[part] -= 1
            lines += [line] * (left[part] >= 0)
        items.write_text("".join(lines))
    return str(folder)


@pytest.fixture
def write_paths(write_spec, tmp_path):
    """write_paths(layers, **spec) -> a search over layer paths."""

    def write(layers, **changes):
        (tmp_path / "paths.yaml").write_text(yaml.safe_dump({"name": "paths", "layers": layers}))
        return write_spec(space="paths.yaml", dtype="float32", **{"sampler": "random", **changes})

    return write


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trials(folder):
    study = optuna.load_study(study_name="sim", storage=f"sqlite:///{folder}/runs/sim/study.db")
    return [trial for trial in study.trials if not trial.user_attrs.get(attributes.INTERRUPTED)]


def document(capsys, *arguments):
    capsys.readouterr()
    assert run_command([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_search_over_paths_ends_in_a_verdict_and_an_export_that_is_verified(
    write_paths, pack, tmp_path, capsys, one_thread
):
    spec = write_paths({"max_layers": 7}, evaluator=pack, budget={"trials": 8}, sampler="catcma")
    checked = document(capsys, "check", spec)
    assert checked["space"]["longest_path"] == 7
    assert checked["space"]["centre"] == "layers 0 to 5 of reverse"
    document(capsys, "run", spec, "--ray", "none")

    done = trials(tmp_path)
    refused = [trial for trial in done if attributes.INFEASIBLE in trial.user_attrs]
    scored = [trial for trial in done if trial.state is TrialState.COMPLETE]
    assert len(done) == len(refused) + len(scored) == 8
    assert refused
    for trial in refused:
        assert trial.state is TrialState.FAIL
        assert "max_layers of the space allows 7" in trial.user_attrs[attributes.FAILURE]
        assert attributes.SECONDS not in trial.user_attrs
    assert [trial.user_attrs[attributes.TELL] for trial in done] == list(range(8))

    rows = document(capsys, "leaderboard", spec)["rows"]
    values = {row["label"]: row["search"]["value"] for row in rows if row["search"]}
    for number, source in enumerate(("reverse", "sort")):  # the first trials are the sources themselves
        assert done[number].value == values[source]
    best = next(row for row in rows if row["kind"] == "best")
    assert best["layers"] == done[best["trial"]].user_attrs[attributes.LAYERS]
    assert all(row["layers"] is None for row in rows if row["kind"] in ("source", "baseline"))
    assert best["held_out"] is not None

    exported = document(capsys, "export", spec, "--out", "best")
    assert exported["verified"]
    deepest = max(scored, key=lambda trial: trial.user_attrs[attributes.LAYERS])
    document(capsys, "export", spec, "--trial", deepest.number, "--out", "deep")
    _, loading = AutoModelForCausalLM.from_pretrained("deep", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    config = json.loads(Path("deep/config.json").read_text())
    assert config["num_hidden_layers"] == deepest.user_attrs[attributes.LAYERS]
    assert "layers of the sources as they are" in Path("deep/README.md").read_text()
    recipe = Recipe.from_json(Path("deep/recipe.json").read_text())
    again = dict(Worker(open_inputs(load_spec(spec)).setup()).bank.merged(recipe))
    written = load_file("deep/model.safetensors")
    assert again.keys() == written.keys()
    assert all(torch.equal(again[name], written[name]) for name in written)


def test_one_worker_scores_candidates_of_several_depths_as_their_exports_are_scored(
    write_paths, pack, tmp_path, one_thread
):
    inputs = open_inputs(load_spec(write_paths({"max_layers": 9}, evaluator=pack)))
    worker = Worker(inputs.setup())
    paths = [
        [("reverse", layer, 1.0) for layer in range(6)],
        [*(("sort", layer, 0.9) for layer in range(6)), ("reverse", 5, 1.0), ("base", 5, 1.0)],
        [("reverse", 0, 1.0), ("sort", 1, 1.2), ("sort", 2, 1.0), ("reverse", 5, 1.0)],
    ]
    recipes = [
        Recipe(
            base=inputs.base.ref,
            sources=tuple(expert.ref for expert in inputs.experts),
            rules=(),
            dtype="float32",
            layers=tuple(PathLayer(*layer) for layer in path),
        )
        for path in paths
    ]
    block = ItemBlock("search")
    found = {}
    for number in (0, 1, 2, 1, 0):  # back to a depth that was there before
        result = worker.run(Score(key=f"{number}", recipe=recipes[number], items=block)).result
        assert isinstance(result, Scored), result
        tasks = {name: (scores.outcomes, scores.gold) for name, scores in result.scores.tasks.items()}
        assert found.setdefault(number, tasks) == tasks
    assert len({str(tasks) for tasks in found.values()}) == 3

    batch_size = worker.evaluator.batch_size
    for number, recipe in enumerate(recipes):
        out = tmp_path / f"out{number}"
        write_model(out, base=inputs.base, tensors=worker.bank.merged(recipe), dtype=torch.float32, recipe=recipe)
        model = AutoModelForCausalLM.from_pretrained(out).eval()
        alone = Worker(inputs.setup()).evaluator
        alone.batch_size = batch_size
        scores = alone.score(Candidate(key="", params={}, recipe=recipe, model=lambda model=model: model), block)
        assert {name: (each.outcomes, each.gold) for name, each in scores.tasks.items()} == found[number]


def test_kills_change_nothing_where_proposals_are_refused_too(write_paths, tmp_path, monkeypatch):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killer", "evomerge.search.run", "transformers.models.llama.modeling_llama"])
    spec = write_paths({"max_layers": 7}, sampler="tpe", baselines=[], budget={"trials": 8})

    def run(point=None, trial=-1):
        here = ["--storage", "sqlite:///runs/sim/study.db"]  # of the command line: in the working directory
        process = context.Process(target=killer.run, args=(["run", str(spec), "--ray", "none", *here], point, trial))
        process.start()
        process.join(timeout=120)
        return process.exitcode

    kills = [("between tell order and tell", 3), ("between tell order and tell", 4)]
    for folder, deaths in (("whole", []), ("killed", kills)):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        for point, trial in deaths:
            assert run(point, trial) == -9
        assert run() == 0
    whole, killed = trials(tmp_path / "whole"), trials(tmp_path / "killed")
    assert [trial.params for trial in killed] == [trial.params for trial in whole]
    assert [trial.state for trial in killed] == [trial.state for trial in whole]
    assert [trial.user_attrs[attributes.TELL] for trial in killed] == list(range(8))
    assert {trial.state for trial in whole} == {TrialState.COMPLETE, TrialState.FAIL}


def test_a_recipe_given_by_hand_that_is_over_the_budget_is_refused_before_anything_is_written(
    write_paths, tmp_path, capsys
):
    inputs = open_inputs(load_spec(write_paths({"max_layers": 12})))
    long = inputs.space.decode({name: "1" if "block" in name else start for name, start in inputs.space.centre.items()})
    (tmp_path / "recipe.json").write_text(long.to_json())
    spec = write_paths({"max_layers": 7}, warm_start={"recipes": ["recipe.json"]})
    for command in ("check", "run"):
        assert run_command([command, str(spec)]) == 2
        assert "has 12 layers, and max_layers of the space allows 7" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_check_warns_where_most_paths_are_over_the_budget(write_paths, capsys):
    def warnings(**layers):
        found = document(capsys, "check", write_paths(layers, baselines=[], budget={"trials": 500}))["warnings"]
        return [warning for warning in found if "of all paths" in warning]

    assert "have at most 6 layers" in warnings(max_layers=6)[0]
    assert warnings(max_layers=9) == []


def test_a_path_that_won_starts_the_next_search(write_paths, tmp_path, capsys):
    spec = write_paths({"max_layers": 8}, budget={"trials": 6}, baselines=[])
    assert run_command(["run", str(spec), "--ray", "none"]) == 0
    assert "layers" in capsys.readouterr().out  # a column of the leaderboard
    study = optuna.load_study(study_name="sim", storage=f"sqlite:///{tmp_path}/runs/sim/study.db")
    best = best_trials(study, 1)[0]
    assert run_command(["export", str(spec), "--out", "best"]) == 0
    spec = write_paths(
        {"max_layers": 8}, name="next", budget={"trials": 3}, baselines=[], warm_start={"recipes": ["best/recipe.json"]}
    )
    assert run_command(["run", str(spec), "--ray", "none"]) == 0
    again = optuna.load_study(study_name="next", storage=f"sqlite:///{tmp_path}/runs/next/study.db")
    space = open_inputs(load_spec(spec)).space
    assert space.decode(best.params) in [space.decode(trial.params) for trial in again.trials]


def test_a_baseline_that_needs_a_sum_of_sources_is_refused(write_paths, capsys):
    texts = {"task": "toy_sort", "items": 4}
    spec = write_paths({}, baselines=["dam-from-best"])
    content = yaml.safe_load(spec.read_text())
    for source in content["sources"][1:]:
        source["calibration"] = texts
    spec.write_text(yaml.safe_dump(content))
    assert run_command(["check", str(spec)]) == 2
    assert "paths of their layers" in capsys.readouterr().err


def test_the_evolutionary_example_merges_first_and_then_searches_paths_through_the_winner(
    tmp_path, pack, monkeypatch, capsys, one_thread
):
    shutil.copytree(ROOT / "examples" / "evolutionary", tmp_path / "examples" / "evolutionary")
    (tmp_path / "examples" / "toy").symlink_to(ROOT / "examples" / "toy")
    monkeypatch.chdir(tmp_path / "examples" / "evolutionary")
    for name, trials in (("parameters", 3), ("layers", 5)):  # at another size, on fewer items
        spec = Path(f"{name}.yaml")
        content = yaml.safe_load(spec.read_text())
        spec.write_text(yaml.safe_dump({**content, "evaluator": pack, "budget": {"trials": trials}}, sort_keys=False))
    assert document(capsys, "check", "parameters.yaml")["space"]["dimensions"] == 24
    document(capsys, "run", "parameters.yaml", "--ray", "none")
    assert document(capsys, "export", "parameters.yaml", "--out", "merged")["verified"]
    rows = document(capsys, "run", "layers.yaml", "--ray", "none")["rows"]
    values = {row["label"]: row["search"]["value"] for row in rows if row["search"]}
    assert values["trial 0"] == values["merged"]
    assert document(capsys, "export", "layers.yaml", "--out", "deep")["verified"]
    assert AutoModelForCausalLM.from_pretrained("deep").config.num_hidden_layers <= 8
