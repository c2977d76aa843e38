"""SIGINT, SIGTERM and SIGHUP in every phase of a run: exit code 3 soon after, and the same command goes on."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

sys.path.append(str(Path(__file__).parent))

import staller

from evomerge.cli import run_command
from evomerge.errors import Interrupted
from evomerge.loop import stop as stop_module
from evomerge.loop.stop import SIGNALS, Signalled, Stop, stopping_on_signals
from evomerge.storage import attributes


@pytest.fixture(scope="module")
def processes():
    """Processes that start with everything imported."""
    context = multiprocessing.get_context("forkserver")
    modules = ["staller", "evomerge.search.run", "evomerge.leaderboard", "evomerge.report.progress"]
    modules += ["alembic.command", "sqlalchemy.dialects.sqlite", "transformers.models.llama.modeling_llama"]
    context.set_forkserver_preload(modules)
    return context


@pytest.fixture
def run(processes, write_spec, tmp_path):
    """run(place, *signals, **changes of the spec) -> exit code of a run that comes to a standstill there."""

    def start(place, *numbers, ray="none", **changes):
        spec = write_spec(**changes)
        arguments = ["run", str(spec), "--ray", ray, "--json"]
        process = processes.Process(target=staller.run, args=(arguments, place))
        process.start()
        reached = tmp_path / staller.REACHED
        while not reached.exists() and process.is_alive():
            time.sleep(0.02)
        for number in numbers:
            os.kill(process.pid, number)
            process.join(timeout=0.3)
        process.join(timeout=60)
        code = process.exitcode
        process.kill()
        reached.unlink(missing_ok=True)
        return code

    return start


def trials():
    return optuna.load_study(study_name="sim", storage="sqlite:///runs/sim/study.db").trials


PHASES = [
    "imports",
    "reading the spec",
    "opening models",
    "ray.init",
    "starting workers",
    "scoring",
    "retries of the storage",
]
PHASES += ["the search", "the verdict"]


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_ends_a_run_in_every_phase_with_exit_code_3(run, phase):
    assert run(phase, signal.SIGTERM, ray="local" if phase == "ray.init" else "none") == 3


@pytest.mark.parametrize(
    ("phase", "number"), [("imports", signal.SIGHUP), ("scoring", signal.SIGHUP), ("scoring", signal.SIGINT)]
)
def test_all_three_signals_are_alike(run, phase, number):
    assert run(phase, number) == 3


@pytest.mark.parametrize(
    ("place", "numbers"),
    [
        ("compiled code", (signal.SIGTERM,)),
        ("compiled code", (signal.SIGTERM, signal.SIGTERM)),
        ("code that catches everything", (signal.SIGINT, signal.SIGINT)),
    ],
)
def test_code_that_cannot_be_interrupted_ends_with_the_process(run, place, numbers):
    assert run(place, *numbers) == 3


def test_a_second_signal_ends_a_run_that_is_being_scored(run):
    assert run("scoring", signal.SIGTERM, signal.SIGHUP) == 3


def test_an_interrupted_candidate_has_used_no_attempt_and_is_scored_by_the_next_run(run, write_spec):
    for _ in range(4):
        assert run("the third candidate", signal.SIGTERM) == 3
        waiting = [trial for trial in trials() if not trial.state.is_finished()]
        assert [(trial.number, trial.user_attrs[attributes.ATTEMPT]) for trial in waiting] == [(2, 0)]
    assert run_command(["run", str(write_spec()), "--ray", "none"]) == 0
    assert [trial.state for trial in trials()] == [TrialState.COMPLETE] * 6


def failures():
    return {trial.number: trial.user_attrs[attributes.FAILURE] for trial in trials() if trial.state is TrialState.FAIL}


def test_a_candidate_that_hangs_is_given_up_after_the_time_out_and_the_search_goes_on(run):
    assert run("the third candidate", workers={"timeout": 5}) == 0
    assert failures() == {2: "no outcome after 5 s; the worker was built anew (workers.timeout)"}
    assert len(trials()) == 6


def test_a_candidate_whose_compiled_code_hangs_ends_the_process_and_the_next_run_goes_on_without_it(run, write_spec):
    assert run("compiled code of the third candidate", workers={"timeout": 5}) == 3
    assert list(failures()) == [2]
    assert "workers.timeout" in failures()[2]
    assert run_command(["run", str(write_spec()), "--ray", "none"]) == 0
    assert list(failures()) == [2]
    assert len(trials()) == 6


def test_a_source_whose_compiled_code_hangs_ends_the_run_as_a_failure(run):
    assert run("compiled code", workers={"timeout": 0.5}) == 5


def test_sys_exit_in_a_task_is_a_failed_candidate(run):
    assert run("sys.exit in the third candidate") == 0
    assert list(failures()) == [2]
    assert failures()[2].startswith("SystemExit: 7 (in leave, staller.py:")


def test_sys_exit_in_code_that_is_loaded_is_invalid_input(run):
    assert run("sys.exit while models are opened") == 2


def test_a_signal_that_was_ignored_when_the_process_began_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            stop.check()
            assert stop.reason is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_process_that_was_forked_dies_of_a_signal_and_its_parent_goes_on():
    with stopping_on_signals() as stop:
        context = multiprocessing.get_context("fork")
        begun = context.Event()
        process = context.Process(target=lambda: begun.set() or time.sleep(600))
        process.start()
        begun.wait()
        process.terminate()
        process.join(timeout=60)
        assert process.exitcode == -signal.SIGTERM
        time.sleep(0.2)
        stop.check()


def test_a_library_user_gets_interrupted_and_his_handlers_back():
    def handlers():
        return [signal.getsignal(number) for number in (*SIGNALS, signal.SIGURG)]

    before = handlers()

    def run():
        with stopping_on_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)

    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        run()
    assert handlers() == before


def test_the_thread_that_watches_may_have_gone_before_the_last_ring(monkeypatch):
    stop = Stop()
    stop.start()
    watching = next(thread for thread in threading.enumerate() if thread.name == "signals")
    with pytest.raises(Signalled):
        os.kill(os.getpid(), signal.SIGTERM)
    ring = stop_module._ring

    def ring_late(bell):
        watching.join(timeout=60)
        ring(bell)

    monkeypatch.setattr(stop_module, "_ring", ring_late)
    stop.finish()
    assert not watching.is_alive()


RAYS_HANDLER = """
import ctypes, os, signal, time
from evomerge.errors import Interrupted
from evomerge.loop.stop import stopping_on_signals

try:
    with stopping_on_signals() as stop:
        {before}
        os.kill(os.getpid(), signal.SIGTERM)
        stop.notice()
        time.sleep(2.5)  # all that a run does at its end
        stop.check()
except Interrupted as error:
    print(error)
"""


@pytest.mark.parametrize(
    "before",
    [
        "signal.alarm(1)",  # as Ray's handler does before it calls the one that was there before
        "ctypes.CDLL(None).signal(signal.SIGTERM, ctypes.c_void_p(1)); stop.listen()",  # a handler that Python misses
    ],
    ids=["alarm", "handler"],
)
def test_neither_a_handler_of_compiled_code_nor_its_alarm_keeps_a_run_from_its_own_end(before):
    done = subprocess.run([sys.executable, "-c", RAYS_HANDLER.format(before=before)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "stopped by SIGTERM; run the same command again to go on\n"), (
        done.stderr
    )
