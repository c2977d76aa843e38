"""Schedules of faults on simulated clocks: trials lost 0, doubled 0, hung 0, two writers 0, exit codes as promised.

`EVOMERGE_SIMULATION_SEED=N` replays one seed; `make simulation SCHEDULES=N` runs as many as you like.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from simulation.planted_bugs import PLANTED, plant
from simulation.schedule import SEMANTICS, run_schedule, simulated

SCHEDULES = 100  # of each semantics


def _seeds() -> range:
    seed = os.environ.get("EVOMERGE_SIMULATION_SEED")
    return range(SCHEDULES) if seed is None else range(int(seed), int(seed) + 1)


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_no_schedule_of_faults_loses_doubles_or_hangs_and_none_has_two_writers(semantics: str) -> None:
    with simulated() as folder:
        for seed in _seeds():
            wrong = run_schedule(seed, semantics, folder).wrong
            assert wrong == [], f"EVOMERGE_SIMULATION_SEED={seed} python -m pytest tests/simulation -k {semantics}"


def test_a_seed_is_one_schedule_whenever_it_is_run() -> None:
    with simulated() as folder:
        once, again = (run_schedule(seed, "redis", folder) for seed in (7, 7))
    assert (once.seconds, once.counts) == (again.seconds, again.counts)


@pytest.mark.parametrize("patch", PLANTED, ids=lambda patch: patch.stem)
def test_each_planted_bug_can_still_be_planted(patch: Path, tmp_path: Path) -> None:
    plant(patch, tmp_path)
    changed = [line.removeprefix("+++ b/") for line in patch.read_text().splitlines() if line.startswith("+++ b/")]
    root = Path(__file__).parent.parent.parent
    assert all((tmp_path / file).read_bytes() != (root / file).read_bytes() for file in changed)
    assert len(PLANTED) >= 20
