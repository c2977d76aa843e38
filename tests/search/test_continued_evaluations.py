"""SIGKILL in the middle of a long evaluation: the next attempt continues, and one block of items is scored again."""

import os
import signal
import sys
from collections import Counter
from pathlib import Path

import optuna
import pytest

sys.path.append(str(Path(__file__).parent))

import killer
import stepped_evaluator
from search.test_kill import processes  # noqa: F401
from stepped_evaluator import LAST, blocks_of, offer

from evomerge import load_spec, run_search
from evomerge.errors import Interrupted
from evomerge.evaluation_checkpoints import FOLDER
from evomerge.leaderboard import leaderboard
from evomerge.study.stored_search import read_search

HERE = str(Path(stepped_evaluator.__file__).parent)


@pytest.fixture
def search(write_spec, tmp_path, monkeypatch):
    """search(evaluator's name, **settings) -> a spec of three trials whose evaluations have a checkpoint a block."""
    for folder in (offer(tmp_path), HERE):
        monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path / "plugin"), HERE, os.environ.get("PYTHONPATH", "")])
    )

    def write(name, file="search.yaml", **settings):
        return write_spec(
            file,
            evaluator={"name": name, "items": 40, **settings},
            budget={"trials": 3},
            workers={"count": 1, "checkpoint": 1e-9},
            storage=f"sqlite:///{tmp_path}/{Path(file).stem}.db",
        )

    return write


def rows_of(spec):
    """Everything that was found: label, value and cost in items of every row and trial."""
    stored = read_search(spec)
    lines = [(line.label, line.search.value if line.search else None) for line in leaderboard(stored)]
    study = optuna.load_study(study_name="sim", storage=spec.storage_url)
    trials = [
        (trial.state, trial.params, trial.value, trial.user_attrs["evomerge:cost"]["items"]) for trial in study.trials
    ]
    return lines, trials


def check(folder, spec, whole, twice):
    """No blocks but these were scored twice, what was found is what is found without an interruption, and no checkpoint
    is left."""
    assert {block: count for block, count in Counter(blocks_of(folder)).items() if count > 1} == dict.fromkeys(twice, 2)
    assert rows_of(spec) == whole
    assert list((Path(read_search(spec).artifacts) / FOLDER).iterdir()) == []


WHOLE = []  # what is found without an interruption, once for all tests


def uninterrupted(search):
    if not WHOLE:
        spec = load_spec(search("synthetic", "whole.yaml"))
        run_search(spec, ray="none")
        WHOLE.append(rows_of(spec))
    return WHOLE[0]


def test_a_controller_that_is_killed_in_an_evaluation_scores_one_block_again(processes, search, tmp_path):  # noqa: F811
    path = search("stepped", folder=str(tmp_path), kill=["sim/1"])
    process = processes.Process(target=killer.run, args=(["run", str(path), "--ray", "none"],))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    spec = load_spec(path)
    run_search(spec, ray="none")
    check(tmp_path, spec, uninterrupted(search), [f"sim/1 {LAST}"])


def test_sources_baselines_trials_and_held_out_rows_go_on_after_a_signal(search, tmp_path):
    keys = ["sim/baselines/base", "sim/baselines/uniform-soup", "sim/2", "sim/held-out/sort"]
    spec = load_spec(search("stepped", folder=str(tmp_path), kill=keys, signal=int(signal.SIGTERM)))
    for _ in keys:
        with pytest.raises(Interrupted):
            run_search(spec, ray="none")
    run_search(spec, ray="none")
    check(tmp_path, spec, uninterrupted(search), [])  # the block in which the signal came was finished and kept


def test_the_ray_worker_after_one_that_was_killed_continues_its_evaluation(search, tmp_path):
    spec = load_spec(search("stepped", folder=str(tmp_path), kill=["sim/1"]))
    run_search(spec, ray="local")
    check(tmp_path, spec, uninterrupted(search), [f"sim/1 {LAST}"])
    trials = optuna.load_study(study_name="sim", storage=spec.storage_url).trials
    assert [trial.user_attrs["evomerge:attempt"] for trial in trials] == [1, 2, 1]
