"""Evaluator class and method function of a script reach the workers of Ray; another process says that it lacks them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOY = Path(__file__).parents[2] / "examples" / "toy" / "models"

SCRIPT = """
import sys
import torch
from evomerge import build_spec, run_search
from evomerge.document_evaluator import DocumentEvaluator
from evomerge.elementwise_method import elementwise_method
from evomerge.evaluation import EVALUATORS
from evomerge.methods import METHODS


def median(piece, strength):
    return piece.the_base + strength * torch.stack(piece.task_vectors()).median(0).values


class Norm(DocumentEvaluator):
    def documents(self):
        return {"norm": [{"wanted": number} for number in range(40)]}

    def outcomes(self, candidate, task, documents):
        weight = next(iter(candidate.model().parameters()))
        return [float(weight.norm() * 2 > each["wanted"]) for each in documents]


METHODS["median"] = elementwise_method(median, shared={"strength": (0.5, 2.0)})
EVALUATORS["norm"] = Norm
space = {"methods": {"median": {"parameters": {"strength": {"low": 0.5, "high": 2.0}}}}}
study = run_search(
    build_spec(
        name="own",
        sources={name: f"MODELS/{name}" for name in ("base", "reverse", "sort", "swap")},
        space={"name": "median", "groups": {"depth": "global"}, **space},
        evaluator="norm",
        budget={"trials": 2},
        workers={"count": 1},
        baselines=[],
        dtype="float32",
    ),
    ray=sys.argv[1],
    callbacks=[lambda study, trial: print("told", trial.number, trial.state.name, flush=True)],
)
print("values", [trial.value for trial in study.trials])
"""


def run_in(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(TOY.parents[2]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def script_in(folder: Path, ray: str) -> list[str]:
    """The output of the script by itself."""
    (folder / "own.py").write_text(SCRIPT.replace("MODELS", str(TOY)), encoding="utf-8")
    done = run_in(folder, "own.py", ray)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith(("told", "values"))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and output of a search in one process."""
    folder = tmp_path_factory.mktemp("own")
    return folder, script_in(folder, "none")


def test_workers_of_ray_have_the_class_and_the_function_of_the_script(finished, tmp_path):
    _, printed = finished
    assert printed[:2] == ["told 0 COMPLETE", "told 1 COMPLETE"]
    assert script_in(tmp_path, "local") == printed


def test_another_process_shows_the_leaderboard_and_says_that_it_has_no_such_method(finished):
    folder, _ = finished
    study = ("--storage", "sqlite:///runs/own/study.db", "--study", "own")
    shown = run_in(folder, "-m", "evomerge", "leaderboard", *study, "--json")
    assert shown.returncode == 0, shown.stderr
    rows = json.loads(shown.stdout)["rows"]
    assert {row["kind"] for row in rows} >= {"best", "source"}
    assert all(row["command"] is None and "'norm'" in row["no_command"] for row in rows)
    refused = run_in(folder, "-m", "evomerge", "export", *study, "--out", "best")
    assert refused.returncode == 2
    assert "unknown merge method 'median'" in refused.stderr
