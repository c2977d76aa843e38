"""Shares of searches that are given up as futile though they would have passed a baseline, and savings on others.

    python benchmarks/futility.py [--seeds 4] [--json]

Searches on the landscapes of search.py, in 8 and 24 dimensions, one worker, scores of 400 items, by `cma`, `random` and
`tpe`; besides them draws without any search, from distributions with light and heavy tails. Each search has a budget of
50 and of 100 trials, and is held against 12 baselines between 0.9 times the best of its first 20 trials and 0.25 above
what it ends with. After every trial the chance to pass the baseline is predicted, and the search is given up when it is
below 0.05.

*given up*: of those that would have passed the baseline after the 20th trial. *stopped*: of those that would not;
*saved* is the share of their budget that those had left.
"""

from __future__ import annotations

import argparse
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import optuna
from contestants import SAMPLERS
from landscapes import LANDSCAPES, landscape
from machine import progress, report

from evomerge.loop.outlook import chance_to_pass
from evomerge.study.status import FUTILE

BUDGETS = (50, 100)
DIMENSIONS = (8, 24)
ITEMS = 400
BEFORE = 20  # trials
BARS = 12
DRAWS = ("normal", "laplace", "gumbel", "exponential")
DRAWN = 50  # searches of each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="instances of each landscape (default 4)")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, no table")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    counts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for name, values in searches(options.seeds):
        for budget in BUDGETS:
            count(values[:budget], counts[name])
    report(
        {"benchmark": "futility", "seeds": options.seeds},
        [row(name, each) for name, each in counts.items()],
        options.json,
    )


def searches(seeds: int) -> Iterator[tuple[str, Sequence[float]]]:
    """The values of the trials of each search, with the name of its sampler or distribution."""
    for sampler in ("cma", "random", "tpe"):
        for name in LANDSCAPES:
            for dimensions in DIMENSIONS:
                for seed in range(seeds):
                    yield sampler, searched(sampler, name, dimensions, seed)
            progress(f"{sampler} {name}")
    for name in DRAWS:
        generator = np.random.default_rng([sum(map(ord, name))])
        draw: Callable[..., np.ndarray] = getattr(generator, name)
        for _ in range(DRAWN):
            yield f"draws: {name}", (0.5 + 0.02 * draw(size=max(BUDGETS))).tolist()


def searched(sampler: str, name: str, dimensions: int, seed: int) -> list[float]:
    """Scores of the trials of one search."""
    contestant, where = SAMPLERS[sampler](dimensions, 1, seed), landscape(name, dimensions, seed)
    values: list[float] = []
    while len(values) < max(BUDGETS):
        handle, point = contestant.ask()
        value = where.measured(point, ITEMS, (seed, len(values)))
        contestant.tell(handle, value, len(values))
        values.append(value)
    return values


def count(values: Sequence[float], counts: dict[str, float]) -> None:
    """Add one search, held against every baseline."""
    early, best = max(values[:BEFORE]), max(values)
    for bar in np.linspace(0.9 * early, best + 0.25, BARS):
        if early > bar:
            continue
        ended = stopped(values, float(bar))
        if best > bar:
            counts["passing"] += 1
            counts["given up"] += ended is not None
        else:
            counts["hopeless"] += 1
            if ended is not None:
                counts["stopped"] += 1
                counts["saved"] += 1 - ended / len(values)


def stopped(values: Sequence[float], bar: float) -> int | None:
    """The number of trials after which the search is given up; None where it is not."""
    for told in range(BEFORE, len(values)):
        if max(values[:told]) > bar:
            return None
        chance = chance_to_pass(values[:told], bar, len(values) - told)
        if chance is not None and chance < FUTILE:
            return told
    return None


def row(name: str, counts: dict[str, float]) -> dict[str, object]:
    """The shares of one sampler or distribution."""
    return {
        "candidates of": name,
        "passing": int(counts["passing"]),
        "given up": round(counts["given up"] / max(1, counts["passing"]), 3),
        "hopeless": int(counts["hopeless"]),
        "stopped": round(counts["stopped"] / max(1, counts["hopeless"]), 3),
        "saved": round(counts["saved"] / max(1, counts["stopped"]), 2),
    }


if __name__ == "__main__":
    main()
