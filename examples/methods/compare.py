"""Measure what the papers of the merge methods claim, at toy scale: `python examples/methods/compare.py`.

Writes the table into the README beside this file. Every figure has its 95 % confidence interval over seeds or items.
"""

from __future__ import annotations

import argparse
import importlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from measurement import Row

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
TOPICS = {  # module -> most seeds that it is run with; with one the intervals are over items
    "network_methods": None,
    "task_vector_claims": None,
    "continual_claims": None,
    "alignment_claims": None,
    "modality_claims": 5,
    "depth_claims": 6,
    "toy_model_claims": 1,
}


def measure(topic: str, seed: int) -> Any:
    """The figures of one topic for one seed; runs in a process of its own."""
    import torch

    torch.set_num_threads(1)
    return importlib.import_module(topic).figures(seed)


def rows(topics: Sequence[str], seeds: int, workers: int) -> list[Row]:
    """All rows of the topics, in their order."""
    numbers = {topic: range(min(seeds, TOPICS[topic] or seeds)) for topic in topics}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        # The long ones first, so that both processes end at about the same time.
        futures = {
            (topic, seed): pool.submit(measure, topic, seed) for topic in reversed(topics) for seed in numbers[topic]
        }
        found = {topic: [futures[topic, seed].result() for seed in numbers[topic]] for topic in topics}
    return [row for topic in topics for row in importlib.import_module(topic).claims(found[topic])]


def table(found: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| claim | paper | measured | over | |", "|---|---|---|---|---|"]
    for row in found:
        cells = (row.claim, f"[{row.paper}](https://arxiv.org/abs/{row.paper})", row.measured, row.units, row.verdict)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write(text: str, file: Path = README) -> None:
    """Replace what is between the two marks of the file."""
    before, rest = file.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    file.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure what the papers of the merge methods claim, at toy scale.")
    parser.add_argument("--seeds", type=int, default=8, help="zoos, pairs and models that are trained (8)")
    parser.add_argument("--only", nargs="+", choices=TOPICS, default=list(TOPICS), help="topics to measure")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes (2)")
    parser.add_argument("--no-write", action="store_true", help="print the table and leave the README as it is")
    chosen = parser.parse_args(arguments)

    started = time.perf_counter()
    text = table(rows(chosen.only, chosen.seeds, chosen.workers))
    minutes = (time.perf_counter() - started) / 60
    print(text, f"\n{minutes:.1f} minutes", sep="\n", flush=True)
    if not chosen.no_write:
        write(text)


if __name__ == "__main__":
    main()
