"""SIGKILL at named instants: the same command goes on, and nothing that was finished is lost or done twice."""

import multiprocessing
import sys
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

sys.path.append(str(Path(__file__).parent))

import killer

from evomerge.storage import attributes

TRIALS = 14


@pytest.fixture(scope="module")
def processes():
    """Processes that start with everything imported."""
    context = multiprocessing.get_context("forkserver")
    modules = ["killer", "evomerge.search.run", "evomerge.leaderboard", "evomerge.report.progress"]
    modules += ["alembic.command", "sqlalchemy.dialects.sqlite", "transformers.models.llama.modeling_llama"]
    context.set_forkserver_preload(modules)
    return context


def run(processes, spec, point=None, trial=-1):
    here = "sqlite:///runs/sim/study.db"  # of the command line: in the working directory
    arguments = ["run", str(spec), "--ray", "none", "--trials", str(TRIALS), "--storage", here]
    process = processes.Process(target=killer.run, args=(arguments, point, trial))
    process.start()
    process.join(timeout=120)
    return process.exitcode


def finished(folder):
    """The finished trials in the order in which they were told."""
    study = optuna.load_study(study_name="sim", storage=f"sqlite:///{folder}/runs/sim/study.db")
    trials = [trial for trial in study.trials if not trial.user_attrs.get(attributes.INTERRUPTED)]
    assert all(trial.state is TrialState.COMPLETE for trial in trials)
    return sorted(trials, key=lambda trial: trial.user_attrs[attributes.TELL])


@pytest.mark.parametrize("sampler", ["cma", "random", "qmc", "tpe"])
def test_n25_ten_kills_change_nothing(processes, write_spec, tmp_path, monkeypatch, sampler):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    spec = write_spec(sampler=sampler)

    monkeypatch.chdir(tmp_path / "whole")
    assert run(processes, spec) == 0
    whole = finished(tmp_path / "whole")

    monkeypatch.chdir(tmp_path / "killed")
    for trial, point in enumerate(killer.POINTS, start=1):
        assert run(processes, spec, point, trial) == -9, f"did not die {point} of trial {trial}"
    assert run(processes, spec) == 0
    killed = finished(tmp_path / "killed")

    assert len(killed) == len(whole) == TRIALS
    assert [trial.user_attrs[attributes.TELL] for trial in killed] == list(range(TRIALS))
    assert [trial.params for trial in killed] == [trial.params for trial in whole]
    assert [trial.value for trial in killed] == [trial.value for trial in whole]


def test_n26_a_finished_candidate_is_durable_before_the_next_proposal(processes, write_spec, tmp_path):
    assert run(processes, write_spec(), "inside ask", 3) == -9
    assert [trial.number for trial in finished_or_running(tmp_path) if trial.state is TrialState.COMPLETE] == [0, 1, 2]


def finished_or_running(folder):
    return optuna.load_study(study_name="sim", storage=f"sqlite:///{folder}/runs/sim/study.db").trials


def test_a_trial_that_kills_the_controller_each_time_is_given_up(processes, write_spec, tmp_path):
    spec = write_spec()
    for _ in range(3):
        assert run(processes, spec, "while scoring", 2) == -9
    assert run(processes, spec, "while scoring", 2) == 0
    trial = finished_or_running(tmp_path)[2]
    assert trial.state is TrialState.FAIL
    assert "3 attempts" in trial.user_attrs[attributes.FAILURE]
