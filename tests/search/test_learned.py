"""Learned merges as baselines: through the command line, killed and resumed, exported, checked beforehand, refused."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
import yaml
from safetensors.torch import load_file

from evomerge import load_spec, run_search
from evomerge.checkpoints.recipe_files import load_tensors
from evomerge.cli import run_command
from evomerge.study.row_failures import read_failures
from evomerge.study.rows import read_records
from evomerge.trainers import TRAINERS

EXPERTS = ("reverse", "sort")
SMALL = {"batch_size": 4, "stop_every": 2, "checkpoint_every": 2}
LEARNED = {"name": "learned", "steps": 6, "trial_steps": 4, "granularities": ["global", "tensor"], **SMALL}
COLUMN = {"name": "learned-column", "steps": 4, **SMALL}
FINE_TUNE = {"name": "fine-tune", "steps": 6, "learning_rate": 0.001, **SMALL}


@pytest.fixture
def spec(write_spec, pack):
    """Two experts of the toy models, lm-eval, few items to learn from."""

    def write(name="sim", baselines=(LEARNED,), items=16, **changes):
        path = write_spec(
            f"{name}.yaml", evaluator=str(pack), dtype="float32", name=name, baselines=list(baselines), **changes
        )
        content = yaml.safe_load(path.read_text())
        for source in content["sources"][1:]:
            source["calibration"] = {"task": f"toy_{source['name']}", "items": items}
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def row_of(name, label):
    rows = read_records(optuna.load_study(study_name=f"{name}/baselines", storage=f"sqlite:///runs/{name}/study.db"))
    return next(row for row in rows if row.label == label)


def baseline(path, label, *, kill_at=None):
    """Build the baseline in a process of its own, which is killed when a file of that pattern is there."""
    command = [sys.executable, "-m", "evomerge.cli", "baseline", str(path), "--name", label, "--ray", "none"]
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None:
        if kill_at is not None and list(Path("runs/halved/artifacts/training").glob(kill_at)):
            process.send_signal(signal.SIGKILL)
            return process.wait()
        time.sleep(0.01)
    return process.returncode


@pytest.mark.parametrize(
    ("settings", "kill_at"),
    [(LEARNED, "choice-*.json"), (LEARNED, "learned-*.safetensors"), (FINE_TUNE, "fine-tune-*.safetensors")],
    ids=["choice", "first-training", "fine-tune"],
)
def test_killed_at_any_time_it_resumes_to_the_same_merge_curve_and_cost(spec, settings, kill_at):
    label = settings["name"]
    assert baseline(spec("whole", [settings]), label) == 0
    halved = spec("halved", [settings])
    assert baseline(halved, label, kill_at=kill_at) == -signal.SIGKILL
    assert baseline(halved, label) == 0
    first, second = row_of("whole", label), row_of("halved", label)
    assert first.digest == second.digest
    assert first.trial.intermediate_values == second.trial.intermediate_values
    assert len(first.trial.intermediate_values) > 1
    assert first.losses == second.losses
    assert set(first.losses) == set(EXPERTS)
    for kind in ("forward_tokens", "gradient_tokens"):
        assert getattr(first.cost, kind) == getattr(second.cost, kind) > 0
    assert not list(Path("runs/halved/artifacts/training").iterdir())


def test_a_training_that_diverges_leaves_no_checkpoint(spec, monkeypatch):
    learn = TRAINERS["learned"]

    def diverging(inputs, settings):
        result = yield from learn(inputs, settings)
        assert result.checkpoints[0].is_file()
        return replace(result, after=dict.fromkeys(result.after, float("nan")))

    monkeypatch.setitem(TRAINERS, "learned", diverging)
    assert run_command(["baseline", str(spec(baselines=[COLUMN])), "--name", "learned-column", "--ray", "none"]) != 0
    study = optuna.load_study(study_name="sim/baselines", storage="sqlite:///runs/sim/study.db")
    assert "diverged" in " ".join(read_failures(study).values())
    assert not list(Path("runs/sim/artifacts/training").iterdir())


def test_the_choice_counts_all_that_it_reads_and_check_knows_the_most_of_it(spec, capsys):
    path = spec(baselines=[LEARNED, COLUMN, FINE_TUNE], budget={"trials": 2})
    assert run_command(["check", str(path), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["cost"]["training"]
    run_search(load_spec(path), ray="none")
    for label in ("learned", "learned-column", "fine-tune"):
        cost = row_of("sim", label).cost
        assert 0 < cost.gradient_tokens <= planned[label]["gradient_tokens"]
        assert 0 < cost.forward_tokens <= planned[label]["forward_tokens"]
    tokens = {label: row_of("sim", label).cost.gradient_tokens for label in ("learned", "learned-column")}
    assert tokens["learned"] > tokens["learned-column"]  # four folds, two granularities, and the result
    assert run_command(["leaderboard", str(path), "--json"]) == 0
    rows = {row["label"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert all(rows[label]["held_out"]["value"] > 0 for label in ("learned", "learned-column", "fine-tune"))


def test_what_was_scored_is_exported_from_the_file_of_weights(spec, capsys):
    path = spec(baselines=[FINE_TUNE], budget={"trials": 2})
    run_search(load_spec(path), ray="none")
    assert run_command(["export", str(path), "--trial", "fine-tune", "--out", "out", "--json"]) == 0
    row, document = row_of("sim", "fine-tune"), json.loads(capsys.readouterr().out)
    assert document["recipe"] == row.digest
    assert "no counterpart of the method stored" in document["mergekit"]
    stored, _ = load_tensors(Path("runs/sim/artifacts/files"), row.recipe.files["weights"])
    exported = load_file("out/model.safetensors")
    assert all(torch.equal(exported[name], tensor[0]) for name, tensor in stored.items())
    experts = {source.name for source in row.recipe.sources}
    assert experts == set(EXPERTS)  # the card names them as parents
    held_out = run_command(["leaderboard", str(path), "--json"])
    rows = {each["label"]: each for each in json.loads(capsys.readouterr().out)["rows"]}
    assert held_out == 0
    assert rows["fine-tune"]["recipe"] == row.digest


def test_the_control_learns_from_permuted_answers_and_is_marked(spec, capsys):
    control = {**LEARNED, "name": "learned-permuted", "granularity": "tensor"}
    path = spec(baselines=[{**LEARNED, "granularity": "tensor"}, control], budget={"trials": 2})
    assert run_command(["check", str(path), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["cost"]["training"]
    run_search(load_spec(path), ray="none")
    plain, permuted = row_of("sim", "learned"), row_of("sim", "learned-permuted")
    assert permuted.digest != plain.digest
    assert permuted.losses["reverse"][0] > plain.losses["reverse"][0] + 0.5  # before any step: other answers
    assert 0 < permuted.cost.gradient_tokens <= planned["learned-permuted"]["gradient_tokens"]
    assert run_command(["leaderboard", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {row["label"] for row in document["rows"] if row["control"]} == {"learned-permuted"}
    compared = {each["baseline"]: each.get("control", False) for each in document["verdict"]["comparisons"]}
    assert compared["learned-permuted"]
    assert not compared["learned"]


def test_where_nothing_can_be_learned_the_start_is_the_result(spec):
    path = spec(baselines=[{**LEARNED, "learning_rate": 1e-12}])
    assert run_command(["baseline", str(path), "--name", "learned", "--ray", "none", "--json"]) == 0
    (rule,) = row_of("sim", "learned").recipe.rules
    assert rule.method == "task_arithmetic"
    assert rule.parameters["weight"] == pytest.approx((0.5**0.5,) * 2)


@pytest.mark.parametrize(
    ("baselines", "changes", "message"),
    [
        ([{"name": "learned", "steps": 0}], {}, "steps"),
        (
            [{"name": "learned", "labels": "permuted"}],
            {},
            "labels of baseline 'learned' is always 'given'; leave it out",
        ),
        ([{"name": "learned-permuted", "labels": "given"}], {}, "is always 'permuted'; leave it out"),
        ([{"name": "learned", "folds": 4, "stop_share": 1.0}], {}, "stop_share"),
        ([{"name": "learned-tensor"}], {"items": 1}, "has one calibration text"),
        ([{"name": "learned", "basis": "ties", "granularity": "column"}], {}, "column"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_anything_is_written(spec, capsys, baselines, changes, message):
    path = spec(baselines=baselines, **changes)
    assert run_command(["run", str(path), "--ray", "none"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("runs").exists()
