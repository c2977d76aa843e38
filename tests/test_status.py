"""`evomerge status`: what the study stores, whether its controller lives, and at which price."""

import json
import subprocess
import sys
import time
from dataclasses import asdict

import optuna
import pytest

from evomerge.cli import run_command
from evomerge.commands.glance import Glance, glance_at
from evomerge.errors import InvalidInput
from evomerge.leases.hold_files import lock_file
from evomerge.leases.holder import Holder, holder_of
from evomerge.leases.lock import hold
from evomerge.loop.stop import Stop
from evomerge.report.status_report import probe_code, status_document, status_text
from evomerge.search.session import _beat_with
from evomerge.spec import load_spec
from evomerge.storage import attributes
from evomerge.storage.opening import open_storage, release
from evomerge.study.heartbeat import BEAT_SECONDS, Heartbeat
from evomerge.study.status import Status, status_of
from evomerge.study.stored_search import read_search

RUNNING = {
    "state": "running",
    "finished": 3,
    "budget": 10,
    "failed": 1,
    "running": 1,
    "best": 0.5,
    "best_trial": 2,
    "trials_per_hour": 60.0,
    "seconds_left": 420.0,
    "run_seconds": 180.0,
    "workers": {"busy": 1},
    "restarts": 0,
    "host": "here",
    "pid": 17,
    "updated": 1000.0,
}
# Each takes longer to load than all that the command needs.
HEAVY = {"torch", "transformers", "ray", "optuna", "sqlalchemy", "sklearn", "scipy", "pandas", "pyarrow", "lm_eval"}


@pytest.fixture
def url(tmp_path):
    """A study whose controller, as far as the study tells, is running."""
    url = f"sqlite:///{tmp_path}/study.db"
    storage = open_storage(url)
    study = optuna.create_study(storage=storage, study_name="s")
    study.set_user_attr(attributes.STATUS, RUNNING)
    study.set_user_attr(attributes.PHASE, "searching")
    release(storage)
    return url


def document(url):
    return status_document(glance_at(url, "s"), holder_of(url, "s"))


def test_a_controller_that_was_killed_is_not_running_whatever_it_has_stored(url, tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", "import json; from evomerge.leases.holding_process import this_process as me; "
         "from dataclasses import asdict; print(json.dumps(asdict(me())))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lock_file(tmp_path / "study.db").write_text(child.stdout)
    found = document(url)
    assert (found["alive"], found["status"]["state"], probe_code(found)) == ("no", "running", 10)
    assert "not running: process" in status_text(found).plain
    assert "has ended without saying so" in status_text(found).plain


def test_a_controller_that_holds_the_study_is_alive(url):
    with hold(url, "s"):
        found = document(url)
    assert (found["alive"], probe_code(found)) == ("yes", 0)
    assert "running, process" in status_text(found).plain


def test_the_latest_sign_of_life_counts(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1500.0)
    study = Glance("s", {attributes.STATUS: RUNNING, attributes.HEARTBEAT: 1490.0, attributes.PHASE: "searching"})
    holder = Holder(alive="unknown", process=17, host="there", since=None, refreshed=70.0)
    found = status_document(study, holder)
    assert (found["last_sign"], probe_code(found)) == (10.0, 11)
    assert "nobody can tell from here whether process 17 on there still runs" in status_text(found).plain


def test_a_search_that_has_ended_is_no_cause_for_alarm(url):
    found = document(url)
    finished = {**found, "phase": "finished", "status": {**RUNNING, "state": "finished"}}
    assert probe_code(finished) == 0
    assert "finished, no controller runs" in status_text(finished).plain
    interrupted = {**found, "status": {**RUNNING, "state": "interrupted"}}
    assert probe_code(interrupted) == 10
    assert "interrupted, no controller runs" in status_text(interrupted).plain


@pytest.mark.parametrize("phase", ["starting workers", "scoring the sources on the search items", "searching"])
def test_a_controller_that_has_let_the_study_go_is_not_said_to_have_died(url, phase):
    found = {**document(url), "phase": phase}
    assert found["holder"] is None
    assert probe_code(found) == 10
    last = status_text(found).plain.splitlines()[-1]
    assert last.startswith(f"no controller runs, the latest one ended while {phase}; `evomerge run` goes on")


def test_a_run_whose_workers_cannot_be_started_leaves_a_finished_study_finished(write_spec, capsys):
    path = str(write_spec(budget={"trials": 2}, baselines=[]))
    assert run_command(["run", path, "--ray", "none"]) == 0
    assert run_command(["run", path, "--ray", "foo"]) == 2
    capsys.readouterr()
    assert run_command(["status", path, "--probe"]) == 0
    assert "finished, no controller runs" in capsys.readouterr().out


def test_a_study_in_preparation_says_who_prepares_it():
    holder = Holder(alive="yes", process=17, host="there", since=None, refreshed=3.0)
    found = status_document(Glance("s", {attributes.PHASE: "starting workers"}), holder)
    assert status_text(found).plain.endswith(
        "starting workers\nrunning, process 17 on there, last sign of life 3 s ago"
    )


def test_the_command_answers_with_the_exit_code_of_the_probe(write_spec, capsys):
    path = str(write_spec(budget={"trials": 2}, baselines=[]))
    assert run_command(["run", path, "--ray", "none"]) == 0
    capsys.readouterr()
    assert run_command(["status", path, "--probe", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["alive"], printed["phase"], printed["trials"]["complete"]) == ("no", "finished", 2)
    assert printed["last_sign"] >= 0


def test_check_says_how_long_a_larger_budget_takes_at_the_rate_that_was_measured(write_spec, capsys):
    path = str(write_spec(budget={"trials": 3}, baselines=[]))
    assert run_command(["run", path, "--ray", "none"]) == 0

    def left(**budget):
        write_spec(budget=budget, baselines=[])
        capsys.readouterr()
        assert run_command(["check", path, "--json"]) == 0
        return json.loads(capsys.readouterr().out)["cost"]["seconds_left"]

    assert left(trials=3) == 0.0
    rate = read_search(load_spec(path)).study.user_attrs[attributes.STATUS]["trials_per_hour"]
    assert left(trials=2003) == pytest.approx(2000 / rate * 3600)
    assert left(trials=10**9, hours=1) <= 3600


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_status_that_somebody_else_has_written_is_said_to_be_wrong(command, write_spec, capsys):
    spec = write_spec(budget={"trials": 1}, baselines=[])
    assert run_command(["run", str(spec), "--ray", "none"]) == 0
    read_search(load_spec(spec)).study.set_user_attr(attributes.STATUS, {"trials_per_hour": "many"})
    capsys.readouterr()
    assert run_command([command, str(spec)]) == 2
    assert "the status of the study is not in the form that evomerge writes" in capsys.readouterr().err


def test_hours_of_running_that_are_spent_leave_no_trial_and_more_of_them_do(write_spec):
    path = str(write_spec(budget={"trials": 3}, baselines=[]))

    def trials_after(*options):
        assert run_command(["run", path, "--ray", "none", *options]) == 0
        return len(read_search(load_spec(path)).study.trials)

    assert trials_after() == 3
    assert trials_after("--trials", "5", "--hours", "1e-9") == 3
    assert trials_after("--trials", "5", "--hours", "1") == 5


def test_the_command_loads_neither_optuna_nor_anything_heavier(write_spec, url):
    path = write_spec(storage=url, name="s")
    command = "import sys; from evomerge.cli import run_command; code = run_command(sys.argv[1:]); "
    command += "print(code, *sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    for arguments in (["status", "--storage", url, "--study", "s"], ["--help"], ["--version"], ["status", "--help"]):
        done = subprocess.run([sys.executable, "-c", command, *arguments], capture_output=True, text=True, check=True)
        code, *loaded = done.stderr.splitlines()[-1].split()
        assert code == "0", done.stderr
        assert HEAVY & set(loaded) == set(), (arguments, path)


class Ticks:
    """A clock that is set by hand."""

    now = 100.0

    def monotonic(self):
        return self.now

    time = monotonic


class Written(list):
    """In the place of a study: notes what is stored."""

    def set(self, key, value):
        self.append((key, value))


def test_a_number_that_nobody_can_compute_with_makes_a_status_malformed():
    status = Status(
        state="running",
        finished=1,
        budget=2,
        failed=0,
        running=0,
        best=0.5,
        best_trial=0,
        trials_per_hour=None,
        seconds_left=None,
        run_seconds=1.0,
        workers={},
        restarts=0,
        host="here",
        pid=1,
        updated=0.0,
    )
    assert status_of(asdict(status)) == status
    with pytest.raises(InvalidInput, match=r"the status of the study is not in the form .* of 401 digits is larger"):
        status_of(asdict(status) | {"best": 10**400})


def test_a_run_gives_signs_of_life_wherever_it_looks_whether_it_should_stop():
    clock, written, stop = Ticks(), Written(), Stop()
    _beat_with(stop, Heartbeat(written, clock=clock))
    for _ in range(3):
        stop.look()
    clock.now += BEAT_SECONDS
    stop.look()
    assert written == [(attributes.HEARTBEAT, 100.0), (attributes.HEARTBEAT, 100.0 + BEAT_SECONDS)]
