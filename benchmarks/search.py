"""How far samplers come with few evaluations and workers that do not wait for each other, on synthetic landscapes.

    python benchmarks/search.py [--fraction NAME] [--processes 2] [--json] [--plots FOLDER]

Workers are simulated, and so is time: an evaluation takes a log-normal time (sigma 0.3, median 1) that is drawn by the
seed and the number of the evaluation, and nobody sleeps. Every sampler meets the same instances and durations, through
the same interface and with its defaults:

    cma         ours, asynchronous            cma_es    Optuna's CmaEsSampler
    cma_sync    ours, generation by           tpe       Optuna's TPESampler, up to 200 evaluations and 24 dimensions
                generation                    random    uniform draws
    barrier     pycma itself, generation by generation

The full design takes about three hours with two processes on two cores. Fractions of it:

    quick       two seeds                                    target      24 dimensions, 8 workers, 20 seeds
    noisy       the same, scores of 200 items                wide        32 workers, 1,200 evaluations
    toy         merges of the toy models, 100 evaluations    small       all but 72 dimensions, 5 seeds

*Regret* is 1 less the true quality of the best trial so far; where scores are noisy, of the trial that scored best. Of
the toy models the quality is the score on items that the search does not see, of which nobody knows the best.
*Used* is the share of finished evaluations that the sampler learned from, *utilisation* the share of the workers' time
in which they were busy, and *kept_busy* the same until the last evaluation begins: the end, where workers run out of
work, is no matter of the sampler. Medians over the seeds; *ratio* is the median of the paired ratios of regrets to
those of CmaEsSampler (regrets below 1e-6 count as that). `course` in the JSON is the median regret against simulated
time.
"""

from __future__ import annotations

import argparse
import heapq
import importlib
import itertools
import multiprocessing
import os
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: the matrices are small

import numpy as np
import optuna
import toy_landscape
from contestants import SAMPLERS, Contestant
from landscapes import LANDSCAPES, Landscape, landscape
from machine import progress, report
from numpy.typing import NDArray

Point = NDArray[np.float64]

EVALUATIONS: Final = 400
TPE_EVALUATIONS: Final = 200  # at most: it takes a second for each
ITEMS: Final = 200  # of a noisy evaluation
LEAST: Final = 1e-6  # regret
MOMENTS: Final = 20  # of a course
REFERENCE: Final = "cma_es"


@dataclass(frozen=True)
class Fraction:
    """A part of the design: every combination of what is listed."""

    dimensions: tuple[int, ...]
    workers: tuple[int, ...]
    seeds: int
    noisy: tuple[int, ...] = ()  # numbers of workers that are also measured with noise
    evaluations: int = EVALUATIONS
    landscapes: tuple[str, ...] = tuple(LANDSCAPES)

    @property
    def budgets(self) -> tuple[int, int]:
        """After how many evaluations the regret is reported."""
        return self.evaluations // 2, self.evaluations


FRACTIONS: Final = {
    "quick": Fraction((24,), (8,), 2, (8,)),
    "target": Fraction((24,), (8,), 20),
    "noisy": Fraction((24,), (), 20, (8,)),
    "wide": Fraction((24,), (32,), 5, evaluations=1200),
    "toy": Fraction((toy_landscape.DIMENSIONS,), (8,), 3, evaluations=100, landscapes=("toy",)),
    "small": Fraction((8, 24), (1, 8, 32), 5, (8,)),
    "full": Fraction((8, 24, 72), (1, 8, 32), 20, (8,)),
}


@dataclass(frozen=True)
class Cell:
    """What is run by every seed."""

    landscape: str
    items: int | None
    dimensions: int
    workers: int
    sampler: str
    evaluations: int


@dataclass(frozen=True)
class Course:
    """One run: the regret after each evaluation, and when it was finished."""

    regrets: Sequence[float]
    times: Sequence[float]
    used: float | None
    utilisation: float
    kept_busy: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fraction", choices=list(FRACTIONS), default="quick", help="of the design (default quick)")
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS), help="default: all")
    parser.add_argument("--first-seed", type=int, default=1000, help="default 1000; the defaults were tuned on 0 to 19")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument(
        "--plots",
        type=Path,
        metavar="FOLDER",
        help="where to write FRACTION.png, regret against time; needs matplotlib",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, no table")
    arguments = parser.parse_args()
    fraction = FRACTIONS[arguments.fraction]
    cells = [cell for cell in _cells(fraction) if cell.sampler in arguments.samplers]
    seeds = range(arguments.first_seed, arguments.first_seed + fraction.seeds)
    courses = _run_all(cells, seeds, arguments.processes)
    rows = [_row(cell, fraction.budgets, courses) for cell in cells]
    if arguments.plots:
        plot(rows, arguments.plots / f"{arguments.fraction}.png")
    document = {
        "benchmark": "search",
        "fraction": arguments.fraction,
        "seeds": [seeds[0], seeds[-1]],
        "ratio": _ratios([cell for cell in cells if cell.items is None], fraction.budgets, courses),
        "ratio with noise": _ratios([cell for cell in cells if cell.items], fraction.budgets, courses),
    }
    shown = rows if arguments.json else [{name: row[name] for name in row if name != "course"} for row in rows]
    report(document, shown, arguments.json)
    if not arguments.json:
        for name in ("ratio", "ratio with noise"):
            print(f"{name}, regret / {REFERENCE}'s, median over landscapes and seeds: {document[name]}")


def simulate(contestant: Contestant, where: Landscape | toy_landscape.ToyModels, cell: Cell, seed: int) -> Course:
    """Let the workers work until the budget is spent."""
    running: list[tuple[float, int, Any, Point]] = []
    regrets: list[float] = []
    times: list[float] = []
    spans: list[tuple[float, float]] = []
    best, clock, asked, budget = -np.inf, 0.0, 0, cell.evaluations
    while len(regrets) < budget:
        while len(running) < cell.workers and asked < budget and contestant.ready():
            handle, point = contestant.ask()
            seconds = float(np.random.default_rng([seed, asked, 7]).lognormal(0.0, 0.3))
            heapq.heappush(running, (clock + seconds, asked, handle, point))
            spans.append((clock, clock + seconds))
            asked += 1
        clock, number, handle, point = heapq.heappop(running)
        value = where.measured(point, cell.items, (seed, number))
        contestant.tell(handle, value, len(regrets))
        regrets.append(1.0 - where.quality(point) if value > best else regrets[-1])
        best = max(best, value)
        times.append(clock)
    kept_busy, utilisation = (_busy(spans, until) / cell.workers for until in (max(spans)[0], times[-1]))
    return Course(regrets, times, contestant.used(), utilisation, kept_busy)


def _busy(spans: Sequence[tuple[float, float]], until: float) -> float:
    """Mean number of busy workers."""
    return sum(min(end, until) - start for start, end in spans) / until


def _cells(fraction: Fraction) -> Iterator[Cell]:
    kinds = [(workers, None) for workers in fraction.workers] + [(workers, ITEMS) for workers in fraction.noisy]
    for name, dimensions, (workers, items) in itertools.product(fraction.landscapes, fraction.dimensions, kinds):
        for sampler in SAMPLERS:
            budget = min(fraction.evaluations, TPE_EVALUATIONS if sampler == "tpe" else fraction.evaluations)
            if sampler != "tpe" or dimensions <= 24:
                yield Cell(name, items, dimensions, workers, sampler, budget)


def _run_all(cells: Sequence[Cell], seeds: Sequence[int], processes: int) -> dict[Cell, list[Course]]:
    tasks = [(cell, seed) for cell in cells for seed in seeds]
    courses: dict[Cell, list[Course]] = {cell: [] for cell in cells}
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for number, ((cell, _), course) in enumerate(zip(tasks, pool.imap(_run, tasks), strict=True), start=1):
            courses[cell].append(course)
            if len(courses[cell]) == len(seeds):
                progress(f"{number}/{len(tasks)} {cell}")
    return courses


def _run(task: tuple[Cell, int]) -> Course:
    cell, seed = task
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    contestant = SAMPLERS[cell.sampler](cell.dimensions, cell.workers, seed)
    if cell.landscape == "toy":
        return simulate(contestant, toy_landscape.toy_models(), cell, seed)
    return simulate(contestant, landscape(cell.landscape, cell.dimensions, seed), cell, seed)


def _row(cell: Cell, budgets: Sequence[int], courses: Mapping[Cell, Sequence[Course]]) -> dict[str, Any]:
    runs = courses[cell]
    used = [run.used for run in runs if run.used is not None]
    regrets = {f"regret_{budget}": _median_regret(runs, budget) for budget in budgets}
    ratios = {f"ratio_{budget}": _median(_paired(cell, courses, budget)) for budget in budgets}
    return {
        "landscape": cell.landscape,
        "items": cell.items,
        "dimensions": cell.dimensions,
        "workers": cell.workers,
        "sampler": cell.sampler,
        **regrets,
        **ratios,
        "used": _median(used),
        "utilisation": statistics.median(run.utilisation for run in runs),
        "kept_busy": statistics.median(run.kept_busy for run in runs),
        "time": statistics.median(run.times[-1] for run in runs),
        "course": _course(runs),
    }


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _median_regret(runs: Sequence[Course], budget: int) -> float | None:
    return _median([run.regrets[budget - 1] for run in runs if len(run.regrets) >= budget])


def _paired(cell: Cell, courses: Mapping[Cell, Sequence[Course]], budget: int) -> list[float]:
    """The regrets as shares of the reference's, seed by seed."""
    same = (other for other in courses if replace(other, sampler=cell.sampler, evaluations=cell.evaluations) == cell)
    reference = next((other for other in same if other.sampler == REFERENCE), None)
    return [
        max(run.regrets[budget - 1], LEAST) / max(other.regrets[budget - 1], LEAST)
        for run, other in zip(courses[cell], courses[reference] if reference else [], strict=False)
        if len(run.regrets) >= budget
    ]


def _ratios(
    cells: Sequence[Cell], budgets: Sequence[int], courses: Mapping[Cell, Sequence[Course]]
) -> dict[str, dict[str, float | None]]:
    """Sampler -> budget -> the median over all that it was run on."""
    found: dict[str, dict[str, float | None]] = {}
    for sampler in dict.fromkeys(cell.sampler for cell in cells):
        chosen = [cell for cell in cells if cell.sampler == sampler]
        ratios = {budget: [ratio for cell in chosen for ratio in _paired(cell, courses, budget)] for budget in budgets}
        found[sampler] = {str(budget): _median(each) for budget, each in ratios.items()}
    return found


def _course(runs: Sequence[Course]) -> list[tuple[float, float]]:
    """Median regret at evenly spaced times, up to the median time at which runs end."""
    end = statistics.median(run.times[-1] for run in runs)
    moments = [end * (number + 1) / MOMENTS for number in range(MOMENTS)]
    return [(moment, statistics.median(_regret_at(run, moment) for run in runs)) for moment in moments]


def _regret_at(run: Course, moment: float) -> float:
    done = int(np.searchsorted(run.times, moment, side="right"))
    return run.regrets[max(done, 1) - 1]


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A picture with a panel per combination of landscape, noise, dimensions and workers: regret against time."""
    # An optional dependency, of plots alone.
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")

    keys = ("landscape", "items", "dimensions", "workers")
    panels = [(key, list(group)) for key, group in itertools.groupby(rows, lambda row: tuple(row[k] for k in keys))]
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, grid = pyplot.subplots(
        lines, columns, figsize=(4 * columns, 3 * lines), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, ((name, items, dimensions, workers), group) in zip(grid.flat, panels, strict=False):
        for row in group:
            times, regrets = zip(*row["course"], strict=True)
            axes.semilogy(times, np.maximum(regrets, LEAST), label=row["sampler"])
        noise = f", {items} items" if items else ""
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(which="both", labelsize=7)
        axes.set_title(f"{name}, {dimensions} dimensions, {workers} workers{noise}", fontsize=9)
        axes.set(xlabel="time, in evaluations", ylabel="regret")
    grid.flat[0].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
