"""Trackers beside a search: what they are told, that a resumed search continues its run, and that none can stop it."""

import io
import json
import subprocess
import sys
import time
from unittest.mock import Mock

import optuna
import pytest
from tracked_runs import FAKES, read_wandb

from evomerge.cli import run_command
from evomerge.clock import ManualClock
from evomerge.documents import validate
from evomerge.errors import InvalidInput
from evomerge.observers import TrackSpec
from evomerge.spec import load_spec
from evomerge.storage import attributes
from evomerge.telemetry import tracking, tracking_process
from evomerge.telemetry.tracker import TrackedRun
from evomerge.telemetry.tracking import Tracking, check_trackers
from evomerge.telemetry.tracking_process import TrackedSession, serve

RUN = TrackedRun(id="0123456789abcdef", study="merges", config={})
RAISING = {"name": "synthetic", "items": 40, "raising": 0.3}
BOTH = {"mlflow": {"uri": "sqlite:///mlflow.db"}, "wandb": {"mode": "offline"}}


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """The fakes in the place of the libraries, here and in the processes of trackers."""
    monkeypatch.syspath_prepend(FAKES)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def run(spec, *options):
    return run_command(["run", str(spec), "--ray", "none", *options])


def id_of(folder):
    study = optuna.load_study(study_name="sim", storage=f"sqlite:///{folder}/runs/sim/study.db")
    return study.user_attrs[attributes.TRACKED]


@pytest.mark.usefixtures("fakes")
def test_trials_verdict_and_leaderboard_are_logged_and_a_resumed_search_continues_its_run(write_spec, tmp_path):
    spec = write_spec(evaluator=RAISING, track=BOTH)
    assert run(spec) == 0
    before = id_of(tmp_path)
    assert run(spec, "--trials", "8") == 0
    assert id_of(tmp_path) == before
    [logged] = read_wandb(tmp_path, before, real=False)
    assert sorted(logged["trials"]) == list(range(8))
    states = {each["state"] for each in logged["trials"].values()}
    assert states == {"complete", "failed"}
    scored = next(each for each in logged["trials"].values() if each["state"] == "complete")
    assert {"objective", "objective_stderr", "best", "cost/items", "cost/seconds"} <= set(scored["metrics"])
    assert sum(name.startswith("score/") for name in scored["metrics"]) == 2
    failed = next(each for each in logged["trials"].values() if each["state"] == "failed")
    assert failed["reason"]
    assert len(scored["params"]) > 3
    best = [value for _, value in logged["history"]["best"]]
    assert best == sorted(best)
    assert logged["state"] == "finished"
    assert logged["verdict"].startswith("Trial ")
    assert "## Verdict" in logged["note"]
    rows = {row["name"]: row for row in logged["leaderboard"]}
    assert {"base", "reverse", "sort", "uniform-soup"} < set(rows)
    assert [row["kind"] for row in rows.values()].count("best") == 1
    assert all(row["held_out"] is not None for row in rows.values())

    content = json.loads((tmp_path / "mlflow.db.json").read_text())  # the path is relative to the spec
    searches = [each for each in content["runs"].values() if "evomerge.run" in each["tags"]]
    assert [each["tags"]["evomerge.run"] for each in searches] == [before]
    assert len(content["runs"]) == 1 + 8
    assert content["experiments"] == ["Default", "sim"]
    assert len(searches[0]["history"]["objective"]) == len(logged["history"]["objective"])


@pytest.mark.usefixtures("fakes")
def test_a_run_neither_waits_for_trackers_that_are_away_nor_fails_by_them(write_spec, capsys, caplog):
    spec = write_spec(track={"mlflow": {"uri": "http://me:s3cret@127.0.0.1:9"}, "wandb": {}})
    assert run(spec) == 0
    said = [message for message in caplog.messages if "log" in message]
    for name in ("mlflow", "wandb"):
        first, last = (message for message in said if message.startswith(name))
        assert first.startswith(f"{name} cannot log this search yet: ")
        assert last.startswith(f"{name} did not log 8 results, which the study has: ")  # 6 trials, verdict and end
    assert "s3cret" not in "".join(said)


def test_the_study_has_the_id_and_nothing_of_the_address(write_spec, tmp_path, fakes):
    assert run(write_spec(track={"mlflow": {"uri": f"sqlite:///{tmp_path}/s3cret.db"}})) == 0
    assert b"s3cret" not in (tmp_path / "runs" / "sim" / "study.db").read_bytes()
    assert len(id_of(tmp_path)) == 16


def test_a_library_that_is_missing_is_refused_before_anything_is_made(write_spec, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    spec = write_spec(track={"wandb": {}})
    for words in (["check", str(spec)], ["run", str(spec), "--ray", "none"]):
        assert run_command(words) == 2
        assert "pip install 'evomerge[wandb]'" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "sim" / "study.db").exists()


def test_the_address_may_be_in_the_environment(monkeypatch, fakes):
    spec = validate(TrackSpec, {"mlflow": {"uri": "env:TRACKING"}}, "spec")
    monkeypatch.delenv("TRACKING", raising=False)
    with pytest.raises(InvalidInput, match="TRACKING"):
        check_trackers(spec)
    monkeypatch.setenv("TRACKING", "http://host")
    check_trackers(spec)
    assert tracking.tracker_settings(spec) == {"mlflow": {"uri": "http://host", "experiment": None}}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "name mlflow, wandb, or both"),
        ({"mlflow": None}, "write mlflow: {}"),
        ({"mlfow": {}}, "did you mean 'mlflow'"),
        ({"mlflow": {"url": "x"}}, "did you mean 'uri'"),
        ({"wandb": {"mode": "of"}}, "'online' or 'offline'"),
    ],
)
def test_invalid_trackers_are_refused_with_what_is_allowed(given, says):
    with pytest.raises(InvalidInput, match=says):
        validate(TrackSpec, given, "search spec")


@pytest.mark.parametrize(
    ("uri", "placed"),
    [
        ("sqlite:///a/m.db", "sqlite:///{folder}/a/m.db"),
        ("mlruns", "{folder}/mlruns"),
        ("http://host:5000", "http://host:5000"),
        ("databricks", "databricks"),
        ("env:TRACKING", "env:TRACKING"),
    ],
)
def test_paths_of_stores_begin_at_the_spec(write_spec, tmp_path, uri, placed):
    spec = load_spec(write_spec(track={"mlflow": {"uri": uri}}))
    assert spec.track.mlflow.uri == placed.format(folder=tmp_path)


ANSWER = "import sys\nfor number, line in enumerate(sys.stdin):\n    print({answer}, flush=True)"


def process(code):
    return [sys.executable, "-c", code]


def test_a_tracker_that_hangs_is_ended(monkeypatch, caplog):
    monkeypatch.setattr(tracking, "LAST_SECONDS", 0.3)
    monkeypatch.setattr(tracking, "_WAITING", 2)
    hanging = Tracking("wandb", {}, RUN, command=process("import time; time.sleep(600)"))
    began = time.monotonic()
    for number in range(2000):
        hanging.send({"trial": number})
    assert time.monotonic() - began < 2
    while hanging._process is None:
        time.sleep(0.01)
    child = hanging._process
    hanging.close()
    assert time.monotonic() - began < 20
    assert child.poll() is not None
    assert caplog.messages
    assert all("which the study has: it" in message for message in caplog.messages)


def test_losses_are_said_once_a_minute_and_counted(caplog):
    clock = ManualClock()
    refusing = Tracking("mlflow", {}, RUN, command=process(ANSWER.format(answer="'\"no\"'")), clock=clock)

    def lose(count):
        for number in range(count):
            refusing.send({"trial": number})
        wait_for(lambda: refusing._queue.empty() and refusing._lost + said() >= lost[0])

    def said():
        return sum(int(word) for message in caplog.messages for word in message.split() if word.isdecimal())

    lost = [5]
    lose(5)
    clock.advance(61)
    lost[0] = 8
    lose(3)
    refusing.close()
    assert [message.partition(",")[0] for message in caplog.messages] == [
        "mlflow cannot log this search yet: no",
        "mlflow did not log 6 results",
        "mlflow did not log 2 results",
    ]


def test_a_process_that_died_is_started_again_after_a_minute(tmp_path, caplog):
    clock, file = ManualClock(), tmp_path / "starts"
    code = f"open({str(file)!r}, 'a').write('x')"
    dying = Tracking("wandb", {}, RUN, command=process(code), clock=clock)
    dying.send({"trial": 0})
    dying.send({"trial": 1})
    wait_for(lambda: caplog.messages and dying._lost == 1)  # the first was said, the second is counted
    assert file.read_text() == "x"
    clock.advance(61)
    dying.send({"trial": 2})
    dying.close()
    assert file.read_text() == "xx"
    assert all("its process has ended" in message for message in caplog.messages)


class Recorder:
    def __init__(self, away=0):
        self.calls, self.away = [], away

    def open(self, run):
        self.calls.append("open")
        if self.away:
            self.away -= 1
            raise ConnectionError("no route\nto host")

    def log(self, entry):
        self.calls.append(entry.number)

    def conclude(self, finding):
        self.calls.append("finding")

    def close(self, state):
        self.calls.append(state)


TRIAL = {"trial": {"step": 0, "number": 7, "state": "complete"}}


def test_a_run_that_cannot_be_opened_is_tried_again_after_a_minute():
    recorder, now = Recorder(away=1), [0.0]
    session = TrackedSession(recorder, RUN, clock=lambda: now[0])
    assert [session.take({}), session.take(TRIAL)] == ["no route", "no route"]
    assert recorder.calls == ["open"]
    now[0] = 60.0
    assert session.take(TRIAL) == ""
    assert recorder.calls == ["open", "open", 7]


def test_the_run_of_a_controller_that_was_killed_is_ended_as_interrupted(monkeypatch):
    recorder, answers, orphaned = Recorder(), io.StringIO(), Mock()
    monkeypatch.setattr(tracking_process, "TRACKERS", {"x": lambda: recorder})
    first = {"tracker": "x", "settings": {}, "run": {"id": "a", "study": "b", "config": {}}}
    serve([json.dumps(first), json.dumps(TRIAL)], answers, orphaned)
    assert recorder.calls == ["open", 7, "interrupted"]
    orphaned.assert_called_once_with()
    assert answers.getvalue() == '""\n""\n'
    recorder.calls.clear()
    serve([json.dumps(first), json.dumps({"end": "finished"})], answers, orphaned)
    assert recorder.calls == ["open", "finished"]
    orphaned.assert_called_once_with()


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_process_of_trackers_loads_neither_torch_nor_optuna():
    heavy = "{'torch', 'optuna', 'ray', 'numpy', 'mlflow', 'wandb'}"
    code = f"import sys, evomerge.telemetry.tracking_process; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
