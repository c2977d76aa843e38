"""How often the verdict finds a true difference of 5 points, and how often it claims one where there is none.

    python benchmarks/verdict.py [--runs 500] [--json]

Every run is a whole procedure on simulated outcomes with a fixed seed: 40 candidates are scored on 400 search items,
the best is named, and it is compared with 4 baselines on held-out items by the code that judges real searches, Holm's
correction included. Two figures per cell:

- *one*: one baseline is 5 points worse than the winner, the other three are as good as it. The hardest case, in which
  only p-values below 0.05 / 4 count. Exact, summed over all outcomes of McNemar's test.
- *all*: all four baselines are 5 points worse. How often a given one of them is beaten, simulated.

No model is needed. Its time is not what is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from scipy.special import bdtr
from scipy.stats import binom

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "verdict"))

from simulation import searched

from evomerge.verdict.verdict import ALPHA

SCHEMA = 1
DIFFERENCE = 0.05
BASELINES = 4
ITEMS = (250, 500, 1000, 2000)
DISCORDANT = (0.1, 0.2, 0.3, 0.4, 0.5)


def exact_power(items: int, discordant: float) -> float:
    """Of McNemar's exact test at 0.05 / 4, for a true difference of 5 points."""
    power = 0.0
    for count in range(1, items + 1):
        chance = binom.pmf(count, items, discordant)
        if chance < 1e-12:
            continue
        losses = np.arange(count // 2 + 1)
        rejected = losses[2 * bdtr(losses, count, 0.5) < ALPHA / BASELINES]
        if rejected.size:
            power += chance * binom.cdf(rejected[-1], count, (discordant - DIFFERENCE) / 2 / discordant)
    return float(power)


def simulated(runs: int, items: int, discordant: float, difference: float) -> tuple[float, float]:
    """How often a given baseline is beaten, and how often any, over searches with seeds 0, 1, …"""
    one = some = 0
    for seed in range(runs):
        verdict = searched(
            seed,
            edge=difference / 2,
            baseline_edges=(-difference / 2,) * BASELINES,
            items=items,
            discordant=discordant,
        )
        beaten = [each.outcome == "beats" for each in verdict.comparisons]
        one += sum(beaten)
        some += any(beaten)
    return one / BASELINES / runs, some / runs


def main() -> None:
    parser = argparse.ArgumentParser(description="Power curve of the verdict.")
    parser.add_argument("--runs", type=int, default=500, help="simulated searches per cell")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    options = parser.parse_args()
    started = time.perf_counter()
    cells = []
    for items in ITEMS:
        for discordant in DISCORDANT:
            power, _ = simulated(options.runs, items, discordant, DIFFERENCE)
            _, false = simulated(options.runs, items, discordant, 0.0)
            cells.append(
                {
                    "items": items,
                    "discordant": discordant,
                    "power_one": round(exact_power(items, discordant), 3),
                    "power_all": round(power, 3),
                    "false_wins": round(false, 4),
                }
            )
    document = {
        "schema": SCHEMA,
        "difference": DIFFERENCE,
        "baselines": BASELINES,
        "runs": options.runs,
        "seconds": round(time.perf_counter() - started, 1),
        "cells": cells,
    }
    print(json.dumps(document) if options.json else table(cells, options.runs))


def table(cells: list[dict[str, float]], runs: int) -> str:
    """The cells in Markdown: power when one baseline is worse / when all are; then false wins."""
    head = " | ".join(f"{share:.0%} discordant" for share in DISCORDANT)
    lines = [f"| held-out items | {head} | false wins in {runs} runs |", "|---" * (len(DISCORDANT) + 2) + "|"]
    for items in ITEMS:
        row = [cell for cell in cells if cell["items"] == items]
        power = " | ".join(f"{cell['power_one']:.0%} / {cell['power_all']:.0%}" for cell in row)
        false = [round(cell["false_wins"] * runs) for cell in row]
        lines.append(f"| {items:,} | {power} | {min(false)} to {max(false)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
