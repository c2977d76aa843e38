"""What a search of several objectives finds on the toy models: its Pareto front against the merges that cost less.

    python benchmarks/pareto.py [--trials 300] [--sampler cma] [--settings JSON] [--json]

The toy spec with one objective per task and without trained baselines, in this process, one thread; the search starts
from the best baselines of its space. A point *dominates* a merge when it is at least as good on every task and better
on one, on the search items. The hypervolume is that between the points and a score of zero on every task. `ratio` is
the front's over that of sources and baselines together.
"""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from machine import arguments, report
from optuna._hypervolume import compute_hypervolume
from toy_example import toy_search

from evomerge.leaderboard import Line, leaderboard
from evomerge.search.run import run_search
from evomerge.spec import SearchSpec
from evomerge.study.stored_search import read_search

BASELINES = ["uniform-soup", "greedy-soup", "task-arithmetic", "ties", "dare-ties"]


def main() -> None:
    parser = arguments(str(__doc__).partition("\n")[0])
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--sampler", default="cma")
    parser.add_argument("--settings", type=json.loads, help="of the sampler, as JSON")
    parser.add_argument("--space", help="another search space by name")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.settings is None:
        given.settings = {"population_size": 30} if given.sampler.startswith("nsga") else {}
    torch.set_num_threads(given.threads)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="evomerge-pareto-") as folder:
        spec = _spec({"name": given.sampler, **given.settings}, given.space, given.trials, given.seed, Path(folder))
        run_search(spec, ray="none")
        lines = leaderboard(read_search(spec))
    front = [_point(line) for line in lines if line.front]
    others = {line.label: _point(line) for line in lines if line.kind in ("source", "baseline")}
    rows = [
        {
            "merge": name,
            "mean": float(point.mean()),
            "dominated by": sum(_dominates(each, point) for each in front),
            "most tasks won": max(int((each >= point).sum()) for each in front),
        }
        for name, point in others.items()
    ]
    volumes = {"front": _volume(front), "sources and baselines": _volume(list(others.values()))}
    document = {
        "benchmark": "pareto",
        "trials": given.trials,
        "sampler": {"name": given.sampler, **given.settings},
        "space": given.space,
        "front": len(front),
        "hypervolume": volumes,
        "ratio": volumes["front"] / volumes["sources and baselines"],
    }
    if not given.json:
        print(f"front of {len(front)} points; hypervolume {volumes}")
    report(document, rows, given.json)


def _spec(sampler: dict[str, Any], space: str | None, trials: int, seed: int, folder: Path) -> SearchSpec:
    return toy_search(
        name="pareto",
        objective={"aggregate": "pareto"},
        sampler=sampler,
        seed=seed,
        budget={"trials": trials},
        baselines=[{"name": name} for name in BASELINES],
        warm_start={"baselines": len(BASELINES)},
        verdict={"best": 1},
        storage=f"sqlite:///{folder}/pareto.db",
        artifacts=str(folder / "artifacts"),
        **({"space": space} if space else {}),
    )


def _point(line: Line) -> np.ndarray:
    assert line.search is not None
    return np.array([task["value"] for task in line.search.tasks.values()])


def _dominates(one: np.ndarray, other: np.ndarray) -> bool:
    return bool((one >= other).all() and (one > other).any())


def _volume(points: list[np.ndarray]) -> float:
    return float(compute_hypervolume(-np.stack(points), np.zeros(len(points[0]))))


if __name__ == "__main__":
    main()
