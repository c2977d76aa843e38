"""The real thing: the toy models, lm-eval, Ray and SQLite, with a kill -9 in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from evomerge.storage import attributes

ROOT = Path(__file__).parent.parent.parent
TOY = ROOT / "examples" / "toy" / "search.yaml"
BIN = Path(sys.executable).parent
BASELINES = ["uniform-soup", "task-arithmetic", "ties"]  # no training; they are the first trials
TRIALS = 12  # so many that some are left when the kill comes
SOURCES = ("base", "count", "swap")  # three of the seven, so that the test takes half the time


@pytest.fixture
def spec(tmp_path):
    """The toy search with fewer sources and baselines."""
    content = yaml.safe_load(TOY.read_text(encoding="utf-8"))
    sources = [source for source in content["sources"] if source["name"] in SOURCES]
    content["baselines"] = BASELINES
    content["sources"] = [{**source, "location": str(TOY.parent / source["location"])} for source in sources]
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def environment():
    return {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "TORCHDYNAMO_DISABLE": "1"}


def evomerge(*arguments, folder):
    command = [str(BIN / "evomerge"), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=True)


def trials(folder):
    url = f"sqlite:///{folder}/runs/toy/study.db"
    try:
        return optuna.load_study(study_name="toy", storage=url).get_trials(deepcopy=False)
    except (KeyError, optuna.exceptions.StorageInternalError):
        return []


def kill_after(spec, folder, finished):
    """Start the search, end it with SIGKILL once this many trials are finished and another one runs."""
    folder.joinpath("runs", "toy").mkdir(parents=True)
    command = [str(BIN / "evomerge"), "run", str(spec), "--trials", str(TRIALS)]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(), stderr=subprocess.DEVNULL, start_new_session=True
    )
    end = time.monotonic() + 300
    while time.monotonic() < end:
        states = [trial.state for trial in trials(folder)]
        if states.count(TrialState.COMPLETE) >= finished and TrialState.RUNNING in states:
            break
        assert process.poll() is None, "the search ended before it could be killed"
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


@pytest.mark.timeout(900)
def test_the_toy_search_survives_kill_9_and_lm_eval_agrees_with_its_leaderboard(spec, tmp_path):
    kill_after(spec, tmp_path, finished=4)
    killed = {trial.number: trial for trial in trials(tmp_path) if trial.state is TrialState.COMPLETE}

    evomerge("run", spec, "--trials", TRIALS, folder=tmp_path)
    # A proposal whose ask the kill cut short is failed and does not count.
    done = {trial.number: trial for trial in trials(tmp_path) if not trial.user_attrs.get(attributes.INTERRUPTED)}
    assert [trial.state for trial in done.values()] == [TrialState.COMPLETE] * TRIALS
    assert sorted(trial.user_attrs[attributes.TELL] for trial in done.values()) == list(range(TRIALS))
    for number, trial in killed.items():
        assert done[number].datetime_complete == trial.datetime_complete

    exported = json.loads(evomerge("export", spec, "--out", "runs/toy/best", "--json", folder=tmp_path).stdout)
    assert exported["verified"]

    board = json.loads(evomerge("leaderboard", spec, "--json", folder=tmp_path).stdout)
    best = next(row for row in board["rows"] if row["kind"] == "best")
    assert best["prepare"] is None
    assert str(tmp_path / "runs" / "toy" / "best") in best["command"]
    subprocess.run(
        f"{best['command']} --output_path {tmp_path}/lm_eval",
        shell=True,
        check=True,
        env=environment(),
        capture_output=True,
        cwd=tmp_path,
    )
    result = json.loads(next((tmp_path / "lm_eval").rglob("results_*.json")).read_text())["results"]
    for task, score in best["held_out"]["tasks"].items():
        assert result[task][f"{score['metric']},none"] == score["value"], task
