"""Runs many schedules: `python tests/simulation/many_schedules.py --schedules 100000 --processes 2`."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from simulation.schedule import SEMANTICS, Findings, run_schedule, simulated

_PORTION = 50  # schedules that a process runs one after another


def _portion(task: tuple[str, int, int]) -> list[Findings]:
    semantics, first, count = task
    with simulated() as folder:
        return [run_schedule(seed, semantics, folder) for seed in range(first, first + count)]


def _all(arguments: argparse.Namespace) -> Iterator[Findings]:
    each = -(-arguments.schedules // len(arguments.semantics))
    tasks = [
        (semantics, arguments.seed + first, min(_PORTION, each - first))
        for first in range(0, each, _PORTION)
        for semantics in arguments.semantics
    ]
    if arguments.processes == 1:
        for task in tasks:
            yield from _portion(task)
        return
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        for portion in pool.imap_unordered(_portion, tasks):
            yield from portion


def _report(count: Counter[str], faults: Counter[str], simulated_seconds: float, seconds: float) -> None:
    schedules = count.total()
    print(f"{schedules:,} schedules ({', '.join(f'{name} {count[name]:,}' for name in count)}) in {seconds:,.0f} s:")
    print(f"  {schedules / seconds:,.0f} a second, {simulated_seconds / 3600:,.1f} simulated hours,")
    print(f"  simulated time {simulated_seconds / seconds:,.0f} x real time")
    print(f"  {', '.join(f'{name} {number:,}' for name, number in sorted(faults.items()))}")


def main() -> int:
    """Run the schedules, and print those that went wrong with their seeds. 1 where there is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=1000, help="in all")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--semantics", nargs="+", choices=SEMANTICS, default=SEMANTICS)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--until-wrong", action="store_true", help="end at the first schedule that goes wrong")
    arguments = parser.parse_args()
    count: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    begun, simulated_seconds, wrong = time.monotonic(), 0.0, 0
    for findings in _all(arguments):
        count[findings.semantics] += 1
        faults += findings.counts
        simulated_seconds += findings.seconds
        if findings.wrong:
            wrong += 1
            print(f"WRONG {findings.semantics}, seed {findings.seed}: {'; '.join(findings.wrong)[:500]}", flush=True)
            if arguments.until_wrong:
                return 1
    _report(count, faults, simulated_seconds, time.monotonic() - begun)
    print(f"  {wrong} went wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
