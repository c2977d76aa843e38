"""Whether the toy search wins: its verdict over several seeds, with all, few and no labels.

    python benchmarks/wins.py [--seeds 5] [--cases all none 16 8] [--trials N] [--processes 2] [--json]

A case is the number of labelled calibration items of each skill (`all` is 128), or `none`: as many without labels,
`learned` from the predictions of the experts. Each run is the whole search of examples/toy with one worker: baselines,
trials, held-out items, verdict. The seed draws the order of items, masks and proposals.

*Best* is the best merge found, *merged* the best baseline that is merged and not trained, *beaten* in how many seeds
the verdict says `beats` (p < 0.05 after Holm's correction) of all baselines but `learned`, *ahead of learned* the
difference, *lowest* the least of it; all on the held-out items. *Forwards* is the cost in forward passes of one item.
"""

from __future__ import annotations

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1"}  # read when they are imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import logging
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import torch
from machine import progress, report
from toy_example import TOY

from evomerge.baselines.info import BASELINES
from evomerge.leaderboard import leaderboard
from evomerge.search.run import run_search
from evomerge.spec import SearchSpec, read_spec, resolve
from evomerge.study.stored_search import read_search
from evomerge.verdict import read_verdict

CASES: Final = ("all", "none", "16", "8")
LEARNED: Final = "learned"


def run(case: str, seed: int, trials: int | None) -> dict[str, Any]:
    """One search, as a row."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        spec = spec_of(case, seed, trials, Path(folder))
        study = run_search(spec, ray="none")
        verdict = read_verdict(study)
        lines = {line.label: line for line in leaderboard(read_search(spec))}
    assert verdict is not None  # the search has ended
    held_out = {label: line.held_out.value for label, line in lines.items() if line.held_out is not None}
    words = {each.baseline: each.outcome for each in verdict.comparisons}
    best = next(line for line in lines.values() if line.kind == "best")
    merged = [label for label in held_out if label in BASELINES and not BASELINES[label].trained]
    return {
        "case": case,
        "seed": seed,
        "trial": verdict.trial,
        "grew from": verdict.corner,
        "best": verdict.held_out_value,
        "held-out": {label: held_out[label] for label in held_out if label in BASELINES},
        "merged": max(held_out[label] for label in merged),
        "not beaten": sorted(label for label, word in words.items() if word != "beats" and label != LEARNED),
        "forwards": best.forwards,
    }


def spec_of(case: str, seed: int, trials: int | None, folder: Path) -> SearchSpec:
    """The toy search of a case."""
    content = read_spec(TOY).model_dump(mode="json", by_alias=True)
    items = 128 if case in {"all", "none"} else int(case)
    for source in content["sources"]:
        if source["calibration"]:
            source["calibration"]["items"] = items
    content["baselines"] = [_baseline(each, case, items) for each in content["baselines"]]
    content |= {"seed": seed, "storage": f"sqlite:///{folder}/study.db", "artifacts": str(folder / "artifacts")}
    if trials is not None:
        content["budget"] = {"trials": trials}
    return resolve(SearchSpec.model_validate(content), TOY.parent)


def _baseline(given: Mapping[str, Any], case: str, items: int) -> dict[str, Any]:
    if given["name"] == LEARNED and case == "none":
        return {**given, "loss": {"experts": 1}}
    return {**given, "batch_size": min(16, items)} if given["name"] == "dam" else dict(given)


def table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line for each case."""
    found = []
    for case in dict.fromkeys(row["case"] for row in rows):
        same = [row for row in rows if row["case"] == case]
        ahead = [row["best"] - row["held-out"][LEARNED] for row in same]
        over = [row["best"] - row["merged"] for row in same]
        found.append(
            {
                "labels": case,
                "best": statistics.fmean(row["best"] for row in same),
                "lowest best": min(row["best"] for row in same),
                "learned": statistics.fmean(row["held-out"][LEARNED] for row in same),
                "ahead of learned": statistics.fmean(ahead),
                "lowest": min(ahead),
                "ahead of merged": statistics.fmean(over),
                "lowest ": min(over),
                "beaten": f"{sum(not row['not beaten'] for row in same)} of {len(same)}",
                "forwards": round(statistics.fmean(row["forwards"] for row in same)),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 1 on")
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--trials", type=int, help="of each search; default: those of the example")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    tasks = [(case, seed, given.trials) for case in given.cases for seed in range(1, given.seeds + 1)]
    rows = []
    with ProcessPoolExecutor(given.processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        futures = [pool.submit(run, *task) for task in tasks]
        for (case, seed, _), future in zip(tasks, futures, strict=True):
            rows.append(future.result())
            progress(f"labels {case}, seed {seed}: {rows[-1]}")
    report({"benchmark": "wins", "seeds": given.seeds, "runs": rows}, table(rows), given.json)


if __name__ == "__main__":
    main()
