"""AdaMerging as a baseline: through the command line, killed and resumed, exported, from the winner, and refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import torch
import yaml
from safetensors.torch import load_file

from evomerge import load_spec, run_search
from evomerge.cli import run_command
from evomerge.spec import override
from evomerge.study.rows import read_records

ROOT = Path(__file__).parent.parent.parent
EXPERTS = ("reverse", "sort")
STEPS = 12
ADA = {"name": "adamerging", "steps": STEPS, "batch_size": 2, "learning_rate": 0.01, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """The toy skills with two tasks and few items."""
    folder = tmp_path_factory.mktemp("packs") / "two-skills"
    shutil.copytree(ROOT / "evaluators" / "toy-skills", folder)
    content = yaml.safe_load((folder / "evaluator.yaml").read_text())
    content["tasks"] = [task for task in content["tasks"] if task["task"].removeprefix("toy_") in EXPERTS]
    (folder / "evaluator.yaml").write_text(yaml.safe_dump({**content, "name": "two-skills"}))
    for items in (folder / "items").iterdir():
        lines, left = [], {"calibration": 16, "search": 20, "held_out": 20}
        for line in items.read_text().splitlines(keepends=True):
            part = json.loads(line)["part"]
            left[part] -= 1
            lines += [line] * (left[part] >= 0)
        items.write_text("".join(lines))
    return folder


@pytest.fixture
def spec(write_spec, pack):
    """Two experts of the toy models, lm-eval, a few steps of AdaMerging."""

    def write(name="sim", baselines=(ADA,), calibration=True, **changes):
        path = write_spec(
            f"{name}.yaml", evaluator=str(pack), dtype="float32", name=name, baselines=list(baselines), **changes
        )
        content = yaml.safe_load(path.read_text())
        for source in content["sources"][1 : 3 if calibration else 2]:
            source["calibration"] = {"task": f"toy_{source['name']}", "items": 16}
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def row_of(name, label="adamerging"):
    rows = read_records(optuna.load_study(study_name=f"{name}/baselines", storage=f"sqlite:///runs/{name}/study.db"))
    return next(row for row in rows if row.label == label)


def baseline(path, *, kill_at=None):
    """Build the baseline in a process of its own, which is killed when a checkpoint is there."""
    command = [sys.executable, "-m", "evomerge.cli", "baseline", str(path), "--name", "adamerging", "--ray", "none"]
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None:
        if kill_at is not None and list(kill_at.glob("adamerging-*.safetensors")):
            process.send_signal(signal.SIGKILL)
            return process.wait()
        time.sleep(0.01)
    return process.returncode


def test_killed_with_a_checkpoint_it_resumes_to_the_same_recipe_and_the_same_curve(spec):
    whole, halved = spec("whole"), spec("halved")
    assert baseline(whole) == 0
    training = Path("runs/halved/artifacts/training")
    assert baseline(halved, kill_at=training) == -signal.SIGKILL
    assert len(list(training.iterdir())) == 1
    assert baseline(halved) == 0
    first, second = row_of("whole"), row_of("halved")
    assert first.recipe.rules == second.recipe.rules
    assert first.digest == second.digest
    assert first.trial.intermediate_values == second.trial.intermediate_values
    assert list(first.trial.intermediate_values) == list(range(1, STEPS + 1))
    assert first.losses == second.losses
    assert set(first.losses) == set(EXPERTS)
    assert first.cost.gradient_tokens == second.cost.gradient_tokens > 0
    assert not list(training.iterdir())


def test_check_knows_what_it_reads_and_its_export_is_what_was_scored(spec, capsys):
    path = spec(baselines=[ADA, {**ADA, "name": "adamerging-task"}], budget={"trials": 2})
    assert run_command(["check", str(path), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["cost"]["training"]
    run_search(load_spec(path), ray="none")
    for name in ("adamerging", "adamerging-task"):
        cost = row_of("sim", name).cost
        assert planned[name] == {
            "steps": STEPS,
            "gradient_tokens": cost.gradient_tokens,
            "forward_tokens": cost.forward_tokens,
        }
    assert run_command(["leaderboard", str(path), "--json"]) == 0
    lines = {line["label"]: line for line in json.loads(capsys.readouterr().out)["rows"]}
    assert lines["adamerging"]["search"]["value"] is not None
    assert set(lines["adamerging"]["losses"]) == set(EXPERTS)
    assert run_command(["export", str(path), "--trial", "adamerging", "--out", "out", "--json"]) == 0
    row = row_of("sim")
    assert json.loads(capsys.readouterr().out)["recipe"] == row.digest
    name = "model.layers.0.mlp.up_proj.weight"
    (rule,) = [rule for rule in row.recipe.rules if name in rule.tensors]
    base, *experts = [
        load_file(path.parent / source["location"] / "model.safetensors")[name].float()
        for source in yaml.safe_load(path.read_text())["sources"][:3]
    ]
    merged = base + sum(
        (expert - base) * weight for expert, weight in zip(experts, rule.parameters["weight"], strict=True)
    )
    assert torch.allclose(load_file("out/model.safetensors")[name], merged, atol=1e-6)
    assert len(row_of("sim", "adamerging-task").recipe.rules) == 1


def test_it_refines_the_winner_of_the_search_on_request(spec, capsys):
    path = spec(baselines=["uniform-soup"])
    run_search(override(load_spec(path), trials=2), ray="none")
    content = yaml.safe_load(path.read_text())
    settings = {key: value for key, value in ADA.items() if key != "name"}
    content["baselines"] = ["uniform-soup", {"name": "adamerging-from-best", **settings, "learning_rate": 1e-12}]
    path.write_text(yaml.safe_dump(content))
    assert run_command(["baseline", str(path), "--name", "adamerging-from-best", "--ray", "none", "--json"]) == 0
    capsys.readouterr()
    assert run_command(["leaderboard", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    lines = {line["label"]: line for line in document["rows"]}
    best = next(line for line in document["rows"] if line["kind"] == "best")
    # Steps of no length give the winner again: its weights are those that the training began with.
    assert lines["adamerging-from-best"]["search"]["value"] == best["search"]["value"]


@pytest.mark.parametrize(
    ("baselines", "changes", "message"),
    [
        ([{"name": "adamerging", "steps": 0}], {}, "steps"),
        ([{"name": "adamerging", "initial": None}], {}, "give `initial` a number"),
        ([{"name": "adamerging", "batch_size": 17}], {}, "fewer than batch_size 17"),
        ([{"name": "adamerging-task", "granularity": "tensor"}], {}, "is always 'task'"),
        ([{"name": "adamerging-from-best", "initial": 0.5}], {}, "is always None"),
        ([ADA], {"calibration": False}, "but sort name no calibration"),
        ([{"name": "adamerging-from-best"}], {"space": "ties-per-block"}, "the space has ties; use adamerging"),
    ],
)
def test_what_it_cannot_train_with_is_refused_before_anything_is_written(spec, capsys, baselines, changes, message):
    path = spec(baselines=baselines, **changes)
    assert run_command(["run", str(path), "--ray", "none"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("runs").exists()
