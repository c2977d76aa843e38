"""What racing saves on the toy models, and what it costs: held-out quality against items scored, several seeds.

    python benchmarks/fidelity.py [--seeds 5] [--trials 50] [--rules full successive_halving] [--json]

Each search has the toy spec without baselines, in this process, one thread. *Items* are those that trials were scored
on; *held-out* is the winner's objective on items that no trial saw. The difference to full scoring is paired by item
and averaged over the seeds; its standard error is that between seeds or that of the items, whichever is larger.
`ratio` is the items of the last rule over those of full scoring.
"""

from __future__ import annotations

import logging
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from machine import arguments, progress, report
from scipy.stats import t as student
from toy_example import toy_search

from evomerge.evaluation.scores import Scores
from evomerge.search.run import run_search
from evomerge.spec import SearchSpec
from evomerge.study.rows import read_records, read_scores
from evomerge.study.stored_search import read_search
from evomerge.study.trials import read_cost

FIDELITIES: dict[str, dict[str, str]] = {
    **{name: {"name": name} for name in ("full", "race", "hyperband", "successive_halving")},
    "paired_race": {"name": "race", "estimator": "paired"},
}


def main() -> None:
    parser = arguments(str(__doc__).partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument(
        "--rules",
        nargs="+",
        choices=list(FIDELITIES),
        default=["full", "race", "hyperband", "successive_halving"],
        help="fidelities by name, full first; paired_race is the race with that estimator",
    )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.disable(logging.WARNING)
    found: dict[str, list[tuple[int, float, Scores]]] = {rule: [] for rule in given.rules}
    with tempfile.TemporaryDirectory(prefix="evomerge-fidelity-") as folder:
        for seed in range(given.seeds):
            for rule in given.rules:
                progress(f"seed {seed}: {rule}")
                found[rule].append(_search(_spec(rule, seed, given.trials, Path(folder))))
    rows = [_row(rule, found[rule], found[given.rules[0]]) for rule in given.rules]
    ratio = rows[-1]["items per search"] / rows[0]["items per search"]
    report({"benchmark": "fidelity", "seeds": given.seeds, "trials": given.trials, "ratio": ratio}, rows, given.json)


def _spec(rule: str, seed: int, trials: int, folder: Path) -> SearchSpec:
    return toy_search(
        name=f"{rule}-{seed}",
        fidelity=FIDELITIES[rule],
        seed=seed,
        budget={"trials": trials},
        baselines=[],
        verdict={"best": 1},
        storage=f"sqlite:///{folder}/{rule}-{seed}.db",
        artifacts=str(folder / f"{rule}-{seed}"),
    )


def _search(spec: SearchSpec) -> tuple[int, float, Scores]:
    """Items that trials were scored on, and the winner on the held-out items: its objective, and its outcomes."""
    study = run_search(spec, ray="none")
    stored = read_search(spec)
    assert stored.held_out is not None
    row = next(row for row in read_records(stored.held_out) if row.label.startswith("trial"))
    scores = read_scores(stored.artifacts, stored.storage, row.trial)
    assert scores is not None
    return sum(read_cost(trial).items for trial in study.get_trials(deepcopy=False)), row.value, scores


def _row(rule: str, ours: list[tuple[int, float, Scores]], full: list[tuple[int, float, Scores]]) -> dict[str, Any]:
    differences = [value - other for (_, value, _), (_, other, _) in zip(ours, full, strict=True)]
    mean = statistics.fmean(differences)
    error = _error(differences, [_paired_error(a[2], b[2]) for a, b in zip(ours, full, strict=True)])
    return {
        "fidelity": rule,
        "items per search": statistics.fmean(items for items, _, _ in ours),
        "held-out": statistics.fmean(value for _, value, _ in ours),
        "to full": mean,
        "lower 95 %": mean - student.ppf(0.95, max(1, len(ours) - 1)) * error,
    }


def _error(differences: list[float], of_items: list[float]) -> float:
    between = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return max(between, math.hypot(*of_items) / len(of_items))


def _paired_error(ours: Scores, theirs: Scores) -> float:
    """Standard error of the difference of two means over tasks, from its items."""
    total = 0.0
    for task, score in ours.tasks.items():
        difference = np.array(score.outcomes) - np.array(theirs.tasks[task].outcomes)
        total += float(difference.var(ddof=1)) / len(difference) / len(ours.tasks) ** 2
    return math.sqrt(total)


if __name__ == "__main__":
    main()
