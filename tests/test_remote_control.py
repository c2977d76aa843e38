"""Commands that steer a search from another terminal: each says what it did, and does it once."""

import json
import subprocess
import sys

import optuna
import pytest
from optuna.trial import TrialState

from evomerge.cli import run_command
from evomerge.leases.lock import hold
from evomerge.storage import attributes
from evomerge.storage.opening import open_storage, release

URLS = {"sqlite": "sqlite:///study.db", "journal": "journal:///study.journal"}


@pytest.fixture(params=URLS)
def url(request):
    return URLS[request.param]


@pytest.fixture
def searched(write_spec, url):
    spec = write_spec(storage=url, budget={"trials": 2}, baselines=[])
    assert run_command(["run", str(spec), "--ray", "none"]) == 0
    return spec


def says(capsys, *arguments):
    """The JSON document of a command."""
    capsys.readouterr()
    assert run_command([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_requests_without_a_controller_say_that_none_is_alive(searched, capsys):
    stopped = says(capsys, "stop", searched)
    assert (stopped["changed"], stopped["controller"]) == (False, None)
    assert "no controller is alive" in stopped["message"]
    paused = says(capsys, "pause", searched)
    assert paused["changed"]
    assert "the next run begins paused" in paused["message"]


def test_nothing_but_our_own_lines_reaches_the_terminal(searched):
    for command in ("pause", "pause", "resume"):  # from the second on, Optuna finds the study of requests
        arguments = [sys.executable, "-m", "evomerge", command, str(searched)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        assert done.stderr == ""


def test_a_request_is_made_once(searched, capsys, url):
    with hold(url, "sim"):
        assert [says(capsys, command, searched)["changed"] for command in ("resume", "pause", "pause", "resume")] == [
            False,
            True,
            False,
            True,
        ]
        assert "the search is over" in says(capsys, "pause", searched)["message"]
        assert "paused already, by" in says(capsys, "pause", searched)["message"]


def test_a_controller_that_is_past_its_search_is_said_to_follow_nothing_but_a_stop(searched, capsys, url):
    with hold(url, "sim"):  # by the process that has run the search
        assert "proposes nothing more: the next run begins paused" in says(capsys, "pause", searched)["message"]
        assert "proposes nothing more: `evomerge run` goes on" in says(capsys, "resume", searched)["message"]
        assert "follows within seconds" in says(capsys, "stop", searched)["message"]


def test_a_controller_that_has_not_begun_to_propose_is_said_to_follow(searched, capsys, url):
    study = optuna.load_study(study_name="sim", storage=open_storage(url))
    status = study.user_attrs[attributes.STATUS]
    study.set_user_attr(attributes.STATUS, {**status, "pid": status["pid"] + 1})  # of the run before
    with hold(url, "sim"):
        assert "follows within seconds" in says(capsys, "pause", searched)["message"]


def test_a_trial_that_has_ended_or_never_was_is_not_cancelled(searched, capsys):
    ended = says(capsys, "cancel", searched, "--trial", "1")
    assert not ended["changed"]
    assert "trial 1 has ended already (COMPLETE)" in ended["message"]
    assert run_command(["cancel", str(searched), "--trial", "2"]) == 2
    assert "has no trial 2" in capsys.readouterr().err


def test_requests_leave_the_study_alone(searched, capsys, url):
    before = content(url)
    for command in ("pause", "resume", "stop"):
        says(capsys, command, searched)
    assert content(url) == before


def content(url):
    storage = open_storage(url)
    study = optuna.load_study(study_name="sim", storage=storage)
    found = study.user_attrs, [(trial.state, trial.params, trial.user_attrs) for trial in study.trials]
    release(storage)
    return found


def test_a_search_in_another_process_pauses_goes_on_and_stops(write_spec, capsys, url, tmp_path):
    evaluator = {"name": "synthetic", "items": 40, "delay_seconds": 0.3}
    spec = write_spec(storage=url, evaluator=evaluator, budget={"trials": 100_000}, baselines=[])
    command = [sys.executable, "-m", "evomerge.cli", "run", str(spec), "--ray", "none"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(process, '"state": "running"')
        assert says(capsys, "pause", spec)["controller"]
        wait_for(process, '"state": "paused"')
        states = {trial.state for trial in trials(url)}
        assert states == {TrialState.COMPLETE}
        assert says(capsys, "resume", spec)["changed"]
        wait_for(process, '"state": "running"')
        assert str(process.pid) in says(capsys, "stop", spec)["controller"]
        assert process.wait() == 3
    finally:
        process.kill()
        process.stderr.close()
    study = optuna.load_study(study_name="sim", storage=open_storage(url))
    assert study.user_attrs[attributes.STATUS]["state"] == "interrupted"


def trials(url):
    return optuna.load_study(study_name="sim", storage=open_storage(url)).trials


def wait_for(process, text):
    """Read what the process tells until a line has the text."""
    told = []
    for line in process.stderr:
        told.append(line)
        if text in line:
            return
    raise AssertionError("".join(told))
