"""Trackers: one contract for MLflow and W&B, their fakes and, where they are installed, the libraries themselves."""

import json
import sys
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec

import pytest
from tracked_runs import FAKES, read_mlflow, read_wandb

from evomerge.telemetry.mlflow_tracker import MlflowTracker
from evomerge.telemetry.tracker import Conclusion, TrackedRun, TrialEntry
from evomerge.telemetry.wandb_tracker import WandbTracker

RUN = TrackedRun(id="0123456789abcdef", study="merges", config={"sampler": "cma", "seed": 1})
FINDING = Conclusion(
    headline="Trial 1 beats the soup.",
    belief="believe it",
    note="## Verdict\nTrial 1 beats the soup.",
    columns=("name", "kind", "held_out", "held_out_stderr"),
    rows=[["trial 1", "best", 0.7, 0.02], ["soup", "baseline", 0.6, None]],
)
# MLflow's own uses of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
INSTALLED = [name for name in ("mlflow", "wandb") if find_spec(name) is not None]


def entry(step, **changes):
    given = {
        "number": step,
        "state": "complete",
        "params": {"weight": 0.25 * step, "method": "ties"},
        "metrics": {"objective": 0.5 + step / 10, "best": 0.5 + step / 10, "score/toy|sort": 0.5, "cost/items": 40.0},
    }
    return TrialEntry(step=step, **{**given, **changes})


@contextmanager
def fakes_of(name):
    """The fake in the place of the library, for as long as it lasts."""
    before = {module: sys.modules.pop(module) for module in modules_of(name)}
    sys.path.insert(0, FAKES)
    try:
        yield
    finally:
        sys.path.remove(FAKES)
        for module in modules_of(name):
            del sys.modules[module]
        sys.modules.update(before)


def modules_of(name):
    return [module for module in sys.modules if module.partition(".")[0] == name]


@pytest.fixture(params=[*(f"fake {name}" for name in ("mlflow", "wandb")), *INSTALLED])
def backend(request, tmp_path, monkeypatch):
    """(makes a tracker, reads the run back: config, trials by number, history by metric, verdict, state)."""
    kind, name = request.param.split()[0], request.param.split()[-1]
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with fakes_of(name) if kind == "fake" else nullcontext():
        if name == "mlflow":
            uri = f"sqlite:///{tmp_path}/mlflow.db"
            yield (lambda: MlflowTracker(uri)), (lambda: read_mlflow(uri, "merges", tmp_path))
        else:
            yield (lambda: WandbTracker(mode="offline")), (lambda: read_wandb(tmp_path, RUN.id, real=kind != "fake"))


def logged(make, *entries, finding=None, state="finished"):
    tracker = make()
    tracker.open(RUN)
    for each in entries:
        tracker.log(each)
    if finding is not None:
        tracker.conclude(finding)
    tracker.close(state)


def test_a_search_is_one_run_with_its_trials_verdict_and_leaderboard(backend):
    make, read = backend
    failed = entry(2, state="failed", params={"weight": 0.5}, metrics={"cost/items": 3.0}, reason="it is NaN\nthere")
    logged(make, entry(0), entry(1), failed, finding=FINDING)
    [run] = read()
    assert (run["name"], run["state"], run["config"]) == ("merges", "finished", {"sampler": "cma", "seed": "1"})
    assert run["trials"][1]["params"] == {"weight": "0.25", "method": "ties"}
    assert run["trials"][1]["metrics"]["objective"] == pytest.approx(0.6)
    assert [run["trials"][number]["state"] for number in range(3)] == ["complete", "complete", "failed"]
    assert run["trials"][2]["reason"].startswith("it is NaN")
    assert [(step, pytest.approx(value)) for step, value in run["history"]["best"]] == [(0, 0.5), (1, 0.6)]
    assert [value for name, value in run["trials"][0]["metrics"].items() if name.startswith("score/toy")] == [0.5]
    assert (run["verdict"], run["belief"]) == (FINDING.headline, FINDING.belief)
    assert "beats the soup" in run["note"]
    assert run["leaderboard"] == [
        {"name": "trial 1", "kind": "best", "held_out": 0.7, "held_out_stderr": 0.02},
        {"name": "soup", "kind": "baseline", "held_out": 0.6, "held_out_stderr": None},
    ]


def test_a_search_that_is_resumed_continues_its_run(backend):
    make, read = backend
    logged(make, entry(0), entry(1), state="interrupted")
    [run] = read()
    assert run["state"] == "interrupted"
    logged(make, entry(2), finding=FINDING)
    [run] = read()
    assert sorted(run["trials"]) == [0, 1, 2]
    assert [step for step, _ in run["history"]["objective"]] == [0, 1, 2]
    assert run["state"] == "finished"
    logged(make, finding=FINDING)  # nothing was left to do
    [run] = read()
    assert len(run["leaderboard"]) == 2


def test_wandb_draws_the_best_so_far_over_an_axis_on_which_it_never_falls(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    late = [entry(step, number=number) for step, number in enumerate([0, 2, 3, 1])]  # trial 1 ends last
    with fakes_of("wandb"):
        logged(lambda: WandbTracker(mode="offline"), *late)
    content = json.loads((tmp_path / f"{RUN.id}.json").read_text())
    axis = content["axes"].get("best") or content["axes"].get("*")
    drawn = sorted((step if axis is None else row[axis], row["best"]) for step, row in content["history"])
    assert [value for _, value in drawn] == sorted(value for _, value in drawn)


def test_many_params_are_logged_all(backend):
    make, read = backend
    params = {f"layer.{number}": number / 251 for number in range(1, 251)}
    logged(make, entry(0, params=params))
    [run] = read()
    assert run["trials"][0]["params"] == {name: str(value) for name, value in params.items()}
