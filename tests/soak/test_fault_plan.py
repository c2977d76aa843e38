"""The faults of a soak follow from its seed, and come as often as they should; a supervisor notes every run."""

import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from fault_plan import CONTROLLER_KILLED, CONTROLLER_TERMINATED, OF_THE_CLUSTER, OF_THE_CONTROLLER, Fault, plan
from supervised_runs import SupervisedRuns


def test_a_seed_gives_the_same_faults_and_another_seed_others():
    planned = plan(1, 3600.0, every=20.0, kinds=OF_THE_CLUSTER)
    assert planned == plan(1, 3600.0, every=20.0, kinds=OF_THE_CLUSTER)
    assert planned != plan(2, 3600.0, every=20.0, kinds=OF_THE_CLUSTER)


@pytest.mark.parametrize(("every", "kinds"), [(20.0, OF_THE_CLUSTER), (180.0, OF_THE_CONTROLLER)])
def test_one_fault_comes_in_every_slot_and_each_kind_in_turn(every, kinds):
    planned = plan(3, 3600.0, every=every, kinds=kinds)
    assert [int(fault.second // every) for fault in planned] == list(range(int(3600 // every)))
    rounds = len(planned) // len(kinds)
    assert Counter(fault.kind for fault in planned[: rounds * len(kinds)]) == Counter(kinds * rounds)


# Says on its first run that it waits and waits; is interrupted or killed; ends well from the third one.
COMMAND = """
import pathlib, signal, sys, time
runs = pathlib.Path("runs")
number = int(runs.read_text()) if runs.exists() else 0
runs.write_text(str(number + 1))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
pathlib.Path(f"ready-{number}").touch()
time.sleep(600 if number < 2 else 0)
"""


def test_runs_are_started_again_until_one_ends_well_and_each_has_the_codes_that_the_contract_allows(tmp_path):
    runs = SupervisedRuns([sys.executable, "-c", COMMAND], database=None, log=tmp_path / "said")
    planned = [(0, CONTROLLER_TERMINATED), (1, CONTROLLER_KILLED)]

    def meet_when_ready():
        for number, kind in planned:
            while not (tmp_path / f"ready-{number}").exists():
                time.sleep(0.01)
            assert runs.meet(Fault(0.0, kind, 0.0, 0.0)) is not None

    with ThreadPoolExecutor(1) as threads:
        met = threads.submit(meet_when_ready)
        assert runs.until_finished(300.0)
        met.result()
    assert [run.exit_code for run in runs.runs] == [3, -9, 0]
    assert [run.allowed for run in runs.runs] == [{0, 3}, {0, -9}, {0}]
    assert all(run.is_by_contract for run in runs.runs)


@pytest.mark.parametrize("code", [1, 2, 5, 6])
def test_an_exit_code_that_nothing_explains_is_against_the_contract_and_ends_the_soak(tmp_path, code):
    command = [sys.executable, "-c", f"raise SystemExit({code})"]
    runs = SupervisedRuns(command, database=None, log=tmp_path / "said")
    assert not runs.until_finished(300.0)
    assert [run.is_by_contract for run in runs.runs] == [False]
