"""Layer-wise fusion and the genomes of other searches through the command line: killed, resumed, exported."""

import json
import multiprocessing
import sys
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

sys.path.append(str(Path(__file__).parent))

import killer

from evomerge import load_spec
from evomerge.cli import run_command
from evomerge.opening.inputs import open_inputs
from evomerge.storage import attributes

MODELS = Path(__file__).parent.parent.parent / "examples" / "toy" / "models"
SOURCES = [{"name": name, "location": str(MODELS / name)} for name in ("base", "reverse", "sort", "shift")]
TRIALS = 8


@pytest.fixture(scope="module")
def processes():
    """Processes that start with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killer", "evomerge.search.run", "alembic.command", "sqlalchemy.dialects.sqlite"])
    return context


def run(processes, spec, point=None, trial=-1):
    here = "sqlite:///runs/sim/study.db"  # of the command line: in the working directory
    arguments = ["run", str(spec), "--ray", "none", "--trials", str(TRIALS), "--storage", here]
    process = processes.Process(target=killer.run, args=(arguments, point, trial))
    process.start()
    process.join(timeout=120)
    return process.exitcode


def finished(folder):
    study = optuna.load_study(study_name="sim", storage=f"sqlite:///{folder}/runs/sim/study.db")
    return [trial for trial in study.trials if not trial.user_attrs.get(attributes.INTERRUPTED)]


@pytest.mark.parametrize(
    ("space", "sampler"), [("lfs", "tpe"), ("lfs-flat", "catcma"), ("lfs-flat", "forest"), ("evolutionary-ties", "cma")]
)
def test_a_search_that_is_killed_and_resumed_exports_what_it_scored(
    processes, write_spec, tmp_path, monkeypatch, capsys, space, sampler
):
    spec = write_spec(space=space, sampler=sampler, sources=SOURCES, dtype="float32")
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert run(processes, spec) == 0
    monkeypatch.chdir(tmp_path)
    for point, trial in (("inside ask", 1), ("while scoring", 4), ("after tell", 5)):
        assert run(processes, spec, point, trial) == -9
    assert run(processes, spec) == 0

    whole, killed = finished(tmp_path / "whole"), finished(tmp_path)
    assert [trial.state for trial in killed] == [TrialState.COMPLETE] * TRIALS
    assert [trial.params for trial in killed] == [trial.params for trial in whole]
    assert [trial.value for trial in killed] == [trial.value for trial in whole]
    initial = list(open_inputs(load_spec(spec)).space.initial)
    assert [trial.params for trial in killed[: len(initial)]] == initial
    assert len(initial) == (3 if space == "lfs-flat" else 1)

    assert run_command(["export", str(spec), "--out", "best", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verified"]


def test_one_expert_alone_is_what_the_authors_design_begins_with(write_spec):
    inputs = open_inputs(load_spec(write_spec(space="lfs-flat", sampler="catcma", sources=SOURCES, dtype="float32")))
    for position, params in enumerate(inputs.space.initial):
        weights = {rule.parameters["weight"] for rule in inputs.space.decode(params).rules}
        assert weights == {tuple(float(place == position) for place in range(3))}


def test_a_sampler_without_choices_is_refused_before_anything_is_written(write_spec, tmp_path, capsys):
    spec = write_spec(space="lfs-flat", sampler="cma", sources=SOURCES)
    assert run_command(["run", str(spec), "--ray", "none"]) == 2
    assert "use the sampler catcma or tpe" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
