"""How often a race drops a candidate that is as good as the best so far, and how soon one that is worse.

    python benchmarks/racing.py [--estimator paired] [--runs 1000] [--json]

Every race is simulated on outcomes with a fixed seed, and decided by the code that decides real ones: right and wrong
answers on 4 tasks, blocks of 16 items of each, compared with the incumbent on the same items after every block. Three
figures per cell:

- *equal*: the candidate is as good as an incumbent that was not chosen. How often it is dropped, which is to be 3 % at
  most.
- *chosen*: it is as good, but the incumbent is the luckiest of 20 candidates that are all as good, on these very items.
  The candidate is then behind in earnest on the items of the search, though not beyond them. What it is dropped for is
  the incumbent's luck. No error rate is promised here.
- *worse*: the candidate is 10 points worse. How often it is dropped after 40 % of the items or fewer, and at all.

Items used are the mean share of them that a race took. No model is needed. Its time is not what is measured.

With `--estimator difference` every candidate has a draw of its own, and eight others as good as the incumbent ended
before it. *Equal* is then the test for worse candidates alone (futility 0), *worse* has both tests, and in place of
*chosen* there is a figure for what the other test promises:

- *leading*: of equally good candidates those that score above the incumbent on all these items. How often they are
  dropped, which is to be 3 % at most.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "racing"))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "verdict"))

from races import OBJECTIVE, TASKS, raced
from siblings import draw_of, raced_by_difference
from simulated_answers import Answers, answers

from evomerge.racing import DifferenceSettings, RaceSettings

SCHEMA = 1
WORSE = 0.1
RIVALS = 20
SOON = 0.4
BLOCK = 64
ITEMS = (512, 1500)
DISCORDANT = (0.1, 0.2, 0.3, 0.4, 0.5)

EARLIER = 8

Pair = Callable[[np.random.Generator, int, float], Answers]


def equal(generator: np.random.Generator, items: int, discordant: float) -> Answers:
    """Incumbent and candidate, as good as each other."""
    return answers(generator, [0.0, 0.0], items, discordant)


def chosen(generator: np.random.Generator, items: int, discordant: float) -> Answers:
    """The luckiest of 20, and a candidate as good as all of them."""
    rows = answers(generator, [0.0] * (RIVALS + 1), items, discordant)
    return rows[[int(np.argmax(rows[:RIVALS].mean(axis=1))), RIVALS]]


def worse(generator: np.random.Generator, items: int, discordant: float) -> Answers:
    """A candidate 10 points worse than the incumbent."""
    return answers(generator, [WORSE / 2, -WORSE / 2], items, discordant)


def shares(runs: int, pair: Pair, items: int, discordant: float) -> tuple[float, float, float]:
    """Of races with seeds 0, 1, …: the share dropped, dropped soon, and the mean share of items used."""
    used = []
    for seed in range(runs):
        generator = np.random.Generator(np.random.Philox(seed))
        decision = raced(RaceSettings(), OBJECTIVE, *pair(generator, items, discordant), block=BLOCK)
        used.append(decision.items / items if decision.drop else 1.0)
    found = np.array(used)
    return float((found < 1).mean()), float((found <= SOON).mean()), float(found.mean())


def drawn_shares(
    runs: int, settings: DifferenceSettings, items: int, discordant: float, behind: float = 0.0, leading: bool = False
) -> tuple[float, float, float]:
    """The same three shares of races on drawn items, of candidates so far behind; or of leading ones alone."""
    used: list[float] = []
    seed = 0
    while len(used) < runs:
        generator = np.random.Generator(np.random.Philox(seed))
        edges = [behind / 2] * (EARLIER + 1) + [-behind / 2]
        *earlier, incumbent, candidate = answers(generator, edges, items, discordant).astype(float)
        if not leading or candidate.sum() > incumbent.sum():
            decision = raced_by_difference(settings, draw_of(incumbent, np.array(earlier), seed=seed), candidate)
            used.append(decision.items / items if decision.drop else 1.0)
        seed += 1
    found = np.array(used)
    return float((found < 1).mean()), float((found <= SOON).mean()), float(found.mean())


def paired_cell(runs: int, items: int, discordant: float) -> dict[str, float]:
    """Figures of races in one order of the items."""
    false, _, used = shares(runs, equal, items, discordant)
    lucky, _, used_chosen = shares(runs, chosen, items, discordant)
    dropped, soon, used_worse = shares(runs, worse, items, discordant)
    return {
        "equal_dropped": round(false, 4),
        "equal_used": round(used, 3),
        "chosen_dropped": round(lucky, 4),
        "chosen_used": round(used_chosen, 3),
        "worse_dropped_soon": round(soon, 4),
        "worse_dropped": round(dropped, 4),
        "worse_used": round(used_worse, 3),
    }


def difference_cell(runs: int, items: int, discordant: float) -> dict[str, float]:
    """Figures of races on drawn items."""
    false, _, used = drawn_shares(runs, DifferenceSettings(futility=0.0), items, discordant)
    led, _, used_leading = drawn_shares(runs, DifferenceSettings(), items, discordant, leading=True)
    dropped, soon, used_worse = drawn_shares(runs, DifferenceSettings(), items, discordant, WORSE)
    return {
        "equal_dropped": round(false, 4),
        "equal_used": round(used, 3),
        "leading_dropped": round(led, 4),
        "leading_used": round(used_leading, 3),
        "worse_dropped_soon": round(soon, 4),
        "worse_dropped": round(dropped, 4),
        "worse_used": round(used_worse, 3),
    }


CELLS = {"paired": paired_cell, "difference": difference_cell}


def main() -> None:
    parser = argparse.ArgumentParser(description="False drops and power of a race.")
    parser.add_argument("--estimator", choices=list(CELLS), default="paired")
    parser.add_argument("--runs", type=int, default=1000, help="simulated races per figure")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    options = parser.parse_args()
    started = time.perf_counter()
    cells = []
    for items in ITEMS:
        for discordant in DISCORDANT:
            cell = CELLS[options.estimator](options.runs, items, discordant)
            cells.append({"items": items, "discordant": discordant, **cell})
            print(f"{items} items, {discordant:.0%} discordant: done", file=sys.stderr, flush=True)
    document = {
        "schema": SCHEMA,
        "estimator": options.estimator,
        "alpha": RaceSettings().alpha,
        "minimum": RaceSettings().minimum,
        "block": BLOCK,
        "tasks": TASKS,
        "worse_by": WORSE,
        "rivals": RIVALS,
        "soon": SOON,
        "runs": options.runs,
        "seconds": round(time.perf_counter() - started, 1),
        "cells": cells,
    }
    print(json.dumps(document) if options.json else table(cells))


def table(cells: list[dict[str, float]]) -> str:
    """The cells in Markdown."""
    middle = next(name.removesuffix("_dropped") for name in cells[0] if name in ("chosen_dropped", "leading_dropped"))
    lines = [
        f"| items | discordant | equal: dropped | items used | {middle}: dropped | items used "
        "| worse: dropped by 40 % | at all | items used |",
        "|---" * 9 + "|",
    ]
    for cell in cells:
        lines.append(
            f"| {cell['items']:,} | {cell['discordant']:.0%} | {cell['equal_dropped']:.1%} | {cell['equal_used']:.0%} "
            f"| {cell[middle + '_dropped']:.1%} | {cell[middle + '_used']:.0%} | {cell['worse_dropped_soon']:.1%} "
            f"| {cell['worse_dropped']:.1%} | {cell['worse_used']:.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
