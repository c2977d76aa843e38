"""The power of the verdict to find a true difference of 5 points, and how often it claims what is not so.

    python benchmarks/verdict.py [--runs 500] [--searches 1000] [--looks 10] [--tables 1000]
                                 [--only power|looks|intervals] [--json]

*Power*: every run is a whole procedure on simulated outcomes with a fixed seed: 40 candidates are scored on 400 search
items, the best is named, and it is compared with 4 baselines on held-out items by the code that judges real searches,
all corrections included. Two figures per cell:

- *one*: one baseline is 5 points worse than the winner, the other three are as good as it. The hardest case, in which
  only the smallest p-values count. Exact, summed over all outcomes of the unconditional McNemar test.
- *all*: all four baselines are 5 points worse. How often a given one of them is beaten, simulated.

*Looks*: searches that continue after every look with another winner, compared with the same 4 baselines on the same
1,000 held-out items. How often some look of a user who looks until he likes the words makes a false statement: a win
where all are equally good, *equivalent* where the winner is worse by the margin, and how often a true one is found in
the first look.

*Intervals*: tables of wins and losses in one task or several, of equal and unequal sizes, with a true difference that
is the same in all tasks or not. How often the 95 % interval covers the truth, how often the test rejects, and in how
many tables interval and p-value disagree about 0.

No model is needed. Its time is not what is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "verdict"))

from simulated_answers import looked, said, searched

from evomerge.verdict.looks import share
from evomerge.verdict.mcnemar import unconditional
from evomerge.verdict.score_interval import interval
from evomerge.verdict.sign_flip import Discordance, sign_flip
from evomerge.verdict.verdict import ALPHA

SCHEMA = 2
DIFFERENCE = 0.05
BASELINES = 4
ITEMS = (250, 500, 1000, 2000)
DISCORDANT = (0.1, 0.2, 0.3, 0.4, 0.5)


def exact_power(items: int, discordant: float) -> float:
    """Of the unconditional McNemar test at the level of the first look / 4, for a true difference of 5 points."""
    power, level = 0.0, ALPHA * share(1) / BASELINES
    for count in range(1, items + 1):
        chance = binom.pmf(count, items, discordant)
        if chance > 1e-9:
            favour = (discordant - DIFFERENCE) / 2 / discordant
            power += chance * binom.cdf(most_losses(count, items, level), count, favour)
    return float(power)


def most_losses(count: int, items: int, level: float) -> int:
    """The largest number of losses among so many discordant items that is significant; -1 where none is."""
    losses = int(binom.ppf(level / 2, count, 0.5)) - 1  # significant in the conditional test, and so in this one
    while 2 * (losses + 1) < count and unconditional(count - losses - 1, losses + 1, items) < level:
        losses += 1
    return losses


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


def power_cells(runs: int) -> list[dict[str, float]]:
    """The power curve, one cell for each number of items and share of discordant ones."""
    cells = []
    for items in ITEMS:
        for discordant in DISCORDANT:
            power, _ = simulated(runs, items, discordant, DIFFERENCE)
            _, false = simulated(runs, items, discordant, 0.0)
            cells.append(
                {
                    "items": items,
                    "discordant": discordant,
                    "power_one": round(exact_power(items, discordant), 3),
                    "power_all": round(power, 3),
                    "false_wins": round(false, 4),
                }
            )
    return cells


def look_rows(searches: int, looks: int) -> list[dict[str, float]]:
    """Shares of searches that some look, and the first look, made false and true statements in."""
    rows = []
    for discordant, margin in ((0.2, 0.05), (0.06, 0.03), (0.03, 0.02)):
        truths = {"wins": (0.0, "beats"), "equivalent": (-margin, "equivalent")}
        row: dict[str, float] = {"discordant": discordant, "margin": margin}
        for name, (edge, word) in truths.items():
            found = [
                looked(seed, looks=looks, edge=edge, margin=margin, discordant=discordant) for seed in range(searches)
            ]
            row[f"false_{name}"] = sum(said(each, word) for each in found) / searches
        first = [looked(seed, looks=1, margin=margin, discordant=discordant)[0] for seed in range(searches)]
        told = [each.outcome == "equivalent" for comparisons in first for each in comparisons]
        row["found_equivalent"] = round(sum(told) / len(told), 3)
        rows.append(row)
    return rows


TABLES = (
    # items of each task, share of discordant ones, true difference of each task
    ((30,), 0.2, (0.0,)),
    ((30,), 0.2, (0.1,)),
    ((200,), 0.05, (0.03,)),
    ((200,), 0.3, (0.05,)),
    ((1000,), 0.1, (0.0,)),
    ((25, 25, 25, 25), 0.2, (0.1,) * 4),
    ((20,) * 10, 0.1, (0.0,) * 10),
    ((30, 300), 0.2, (0.0, 0.0)),
    ((30, 300), 0.4, (0.05, 0.05)),
    ((30, 300), 0.4, (0.3, -0.1)),
    ((100, 1000), 0.4, (0.2, -0.2)),
    ((12, 1000), 0.2, (0.1, 0.1)),
    ((1, 1000), 0.2, (0.0, 0.0)),
    ((1, 1000), 0.2, (0.1, 0.1)),
)


def interval_rows(tables: int) -> list[dict[str, Any]]:
    """Coverage of the intervals, false rejections, and disagreements of interval and p-value about 0."""
    rows = []
    for number, (sizes, discordant, true) in enumerate(TABLES):
        generator = np.random.Generator(np.random.Philox(number))
        covered = rejected = disagree = 0
        truth = sum(true) / len(true)
        for _ in range(tables):
            tasks = [
                Discordance(stake=1 / len(sizes) / items, items=items, wins=int(wins), losses=int(losses))
                for items, edge in zip(sizes, true, strict=True)
                for wins, losses, _ in [
                    generator.multinomial(items, [(discordant + edge) / 2, (discordant - edge) / 2, 1 - discordant])
                ]
            ]
            _, p = sign_flip(tasks, seed=0)
            low, high = interval(tasks, p)
            covered += low <= truth <= high
            rejected += p < ALPHA
            disagree += (p < ALPHA) != (low > 0 or high < 0)
        rows.append(
            {
                "items": list(sizes),
                "discordant": discordant,
                "true": list(true),
                "covered": round(covered / tables, 4),
                "rejected": round(rejected / tables, 4),
                "disagree": disagree,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Power and errors of the verdict.")
    parser.add_argument("--runs", type=int, default=500, help="simulated searches per cell of the power curve")
    parser.add_argument("--searches", type=int, default=1000, help="simulated searches of repeated looks")
    parser.add_argument("--looks", type=int, default=10, help="looks at the held-out items of each of them")
    parser.add_argument("--only", choices=["power", "looks", "intervals"], help="one of the parts")
    parser.add_argument("--tables", type=int, default=1000, help="simulated tables for each case of the intervals")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    options = parser.parse_args()
    started = time.perf_counter()
    cells = power_cells(options.runs) if options.only in (None, "power") else []
    rows = look_rows(options.searches, options.looks) if options.only in (None, "looks") else []
    intervals = interval_rows(options.tables) if options.only in (None, "intervals") else []
    document = {
        "schema": SCHEMA,
        "difference": DIFFERENCE,
        "baselines": BASELINES,
        "runs": options.runs,
        "searches": options.searches,
        "looks": options.looks,
        "seconds": round(time.perf_counter() - started, 1),
        "cells": cells,
        "repeated_looks": rows,
        "tables": options.tables,
        "intervals": intervals,
    }
    if options.json:
        print(json.dumps(document))
        return
    if cells:
        print(table(cells, options.runs))
    if rows:
        print(looks_table(rows))
    if intervals:
        print(intervals_table(intervals))


def table(cells: list[dict[str, float]], runs: int) -> str:
    """The cells in Markdown: power when one baseline is worse / when all are; then false wins."""
    head = " | ".join(f"{each:.0%} discordant" for each in DISCORDANT)
    lines = [f"| held-out items | {head} | false wins in {runs} runs |", "|---" * (len(DISCORDANT) + 2) + "|"]
    for items in ITEMS:
        row = [cell for cell in cells if cell["items"] == items]
        power = " | ".join(f"{cell['power_one']:.0%} / {cell['power_all']:.0%}" for cell in row)
        false = [round(cell["false_wins"] * runs) for cell in row]
        lines.append(f"| {items:,} | {power} | {min(false)} to {max(false)} |")
    return "\n".join(lines)


def looks_table(rows: list[dict[str, float]]) -> str:
    """Errors over all looks, and the power of equivalence at the first, in Markdown."""
    lines = [
        "| discordant | margin | false wins, any look | false equivalents, any look | twins equivalent, first look |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['discordant']:.0%} | {100 * row['margin']:.0f} points | {row['false_wins']:.1%} "
            f"| {row['false_equivalent']:.1%} | {row['found_equivalent']:.0%} |"
        )
    return "\n".join(lines)


def intervals_table(rows: list[dict[str, Any]]) -> str:
    """Coverage and agreement, in Markdown."""
    lines = ["| items | discordant | true difference | covered | rejected | disagree |", "|---" * 6 + "|"]
    for row in rows:
        true = sorted(set(row["true"]))
        lines.append(
            f"| {_sizes(row['items'])} | {row['discordant']:.0%} | {', '.join(f'{100 * each:+.0f}' for each in true)} "
            f"| {row['covered']:.1%} | {row['rejected']:.1%} | {row['disagree']} |"
        )
    return "\n".join(lines)


def _sizes(items: list[int]) -> str:
    alike = len(items) > 1 and len(set(items)) == 1
    return f"{len(items)} × {items[0]}" if alike else ", ".join(f"{each:,}" for each in items)


if __name__ == "__main__":
    main()
