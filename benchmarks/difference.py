"""The worth of the difference estimator on real outcomes: those of a search that was scored in full, replayed.

    python benchmarks/difference.py [--storage URL --study NAME] [--seeds 5] [--draws 2000] [--json]

Without a study, the toy search is run first, 50 trials on all items. Its trials are then taken in the order in which
they ended, as if they were proposed again: races decide by the stored outcomes of their items, and nothing is
forwarded. So the proposals do not depend on what a race tells the sampler. Four questions:

- *prediction*: of the outcomes of a candidate, the variance within tasks that is left by a prediction, 1 − ρ² at best.
  Mean over all trials but the first five.
- *bias* of the estimate: mean of `--draws` draws of the median trial after the first half of its blocks, in points.
- *promise*: the share of candidates that is dropped although they score exactly as high as the incumbent on all search
  items. For each trial the incumbent is set to that, and four draws of the trial are raced.
- *items*: the share of all items that each rule takes, trials that would have taken the lead, those of them that it
  dropped, and by how many points the best one that it found is below the best one of all. The *error* is that of the
  estimates of dropped trials, in points, by its mean and standard deviation: who is dropped has been unlucky.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import optuna
import torch
from machine import progress, report
from toy_example import toy_search

from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.objective import Objective
from evomerge.packs.items import ItemBlock
from evomerge.racing import DifferenceSettings, Draw, ItemHistory, RaceSettings, decide, decide_by_difference, make_draw
from evomerge.search.run import run_search
from evomerge.spec import SearchSpec
from evomerge.study.ended_scores import ended_scores
from evomerge.study.stored_search import read_search, read_stored_spec

BLOCK: Final = 64
KNOWN: Final = 5  # trials before predictions are judged
RACES: Final = 4  # of each trial against an incumbent as good as it

RULES: Final[Mapping[str, RaceSettings | DifferenceSettings]] = {
    "paired": RaceSettings(),
    "difference, worse only": DifferenceSettings(futility=0.0),
    "difference": DifferenceSettings(),
}


@dataclass(frozen=True)
class Trials:
    """Scores of trials on all items of the search, in the order in which they ended, and their objective."""

    scores: Sequence[Scores]
    objective: Objective

    @property
    def values(self) -> list[float]:
        return [self.objective.value(each) for each in self.scores]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", help="of a study that was scored in full")
    parser.add_argument("--study", default="toy", help="its name")
    parser.add_argument("--seeds", type=int, default=5, help="of the draws")
    parser.add_argument("--draws", type=int, default=2000, help="of one trial, for the bias")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, no table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="evomerge-difference-") as folder:
        trials = _stored(read_stored_spec(given.storage, given.study) if given.storage else _searched(Path(folder)))
    progress("predictions")
    document = {
        "benchmark": "difference",
        "trials": len(trials.scores),
        "items": sum(len(task.items) for task in trials.scores[0].tasks.values()),
        "prediction": predictions(trials),
        "bias": bias(trials, given.draws),
        "promise": promise(trials, given.seeds),
    }
    rows = []
    for rule, settings in RULES.items():
        progress(f"items: {rule}")
        rows.append(_row(rule, [replay(trials, settings, seed) for seed in range(given.seeds)]))
    report(document, rows, given.json)
    if not given.json:
        for name in ("prediction", "bias", "promise"):
            print(f"{name}: {document[name]}")


def predictions(trials: Trials) -> dict[str, float]:
    """By prediction, the share of the variance within tasks that it leaves."""
    left: dict[str, list[float]] = {"item means": [], "incumbent": [], "half of each": []}
    for number in range(KNOWN, len(trials.scores)):
        history = ItemHistory(trials.scores[:number])
        best = trials.scores[int(np.argmax(trials.values[:number]))]
        for name, share in (("item means", 1.0), ("half of each", 0.5), ("incumbent", 0.0)):
            of_task = []
            for task, score in trials.scores[number].tasks.items():
                means, _ = history.predict(task, score.items)
                found = np.array(score.outcomes)
                rest = found - share * means - (1 - share) * np.array(best.tasks[task].outcomes)
                of_task.append((rest.var(), found.var()))
            rests, alls = zip(*of_task, strict=True)
            left[name].append(sum(rests) / sum(alls))
    return {name: round(statistics.fmean(shares), 3) for name, shares in left.items()}


def bias(trials: Trials, draws: int) -> dict[str, float]:
    """Mean error of the estimate of the median trial, and the standard deviation of a draw, in points."""
    values = trials.values
    number = int(np.argsort(values)[len(values) // 2])
    others = [each for place, each in enumerate(trials.scores) if place != number][:10]
    history, incumbent = ItemHistory(others), max(others, key=trials.objective.value)
    errors = []
    for trial in range(draws):
        draw = _draw(trials, incumbent, history, 0, trial)
        block = len(draw.blocks) // 2
        decision = decide_by_difference(RULES["difference"], draw, seen(trials.scores[number], draw, block), block)
        errors.append(decision.estimate - values[number])
    return {
        "mean": round(100 * statistics.fmean(errors), 3),
        "of a draw": round(100 * statistics.stdev(errors), 2),
        "draws": draws,
    }


def promise(trials: Trials, seeds: int) -> dict[str, float]:
    """Share of the candidates exactly as good as the incumbent that are dropped."""
    values, dropped, races = trials.values, 0, 0
    for number in range(1, len(values)):
        history = ItemHistory(trials.scores[:number])
        place = int(np.argmax(values[:number]))
        for key in range(RACES * seeds):
            draw = _draw(trials, trials.scores[place], history, key, number)
            equal = replace(draw, incumbent=draw.incumbent + (values[number] - values[place]) / np.sum(draw.shares))
            dropped += _race(RULES["difference"], equal, trials.scores[number])[0] is not None
            races += 1
    return {"dropped": round(dropped / races, 4), "races": races}


@dataclass(frozen=True, kw_only=True)
class Replay:
    """One replay: the share of items, trials that would have led, those of them that were dropped, points below the
    best, and the errors of the estimates."""

    used: float
    led: int
    lost: int
    below: float
    errors: Sequence[float]


def replay(trials: Trials, settings: RaceSettings | DifferenceSettings, seed: int) -> Replay:
    """Race the trials in their order."""
    values = trials.values
    history, best, lost, led = ItemHistory(trials.scores[:1]), 0, 0, 0
    used, errors = [1.0], []
    for number in range(1, len(values)):
        candidate, incumbent = trials.scores[number], trials.scores[best]
        if isinstance(settings, RaceSettings):
            dropped, found = _paired(settings, trials.objective, incumbent, candidate)
        else:
            dropped, found = _race(settings, _draw(trials, incumbent, history, seed, number), candidate)
        history.add(found)
        used.append(_count(found) / _count(candidate))
        led += values[number] > values[best]
        lost += values[number] > values[best] and dropped is not None
        if dropped is not None:
            errors.append(100 * (dropped - values[number]))
        elif values[number] > values[best]:
            best = number
    below = 100 * (max(values) - values[best])
    return Replay(used=statistics.fmean(used), led=led, lost=lost, below=below, errors=errors)


def seen(scores: Scores, draw: Draw, block: int) -> Scores:
    """The scores on the items of all blocks up to this one."""
    items: dict[str, list[int]] = {}
    for each in draw.blocks[: block + 1]:
        for task, ids in each.chosen or ():
            items.setdefault(task, []).extend(ids)
    return Scores({task: _part(scores.tasks[task], ids) for task, ids in items.items()}, {})


def _part(score: TaskScores, ids: Sequence[int]) -> TaskScores:
    outcomes = dict(zip(score.items, score.outcomes, strict=True))
    found = tuple(outcomes[item] for item in ids)
    return replace(score, items=tuple(ids), outcomes=found, value=statistics.fmean(found), stderr=None, gold=None)


def _draw(trials: Trials, incumbent: Scores, history: ItemHistory, seed: int, trial: int) -> Draw:
    return make_draw(trials.objective, incumbent, history, seed=seed, trial=trial, minimum=BLOCK, block=BLOCK)


def _race(settings: Any, draw: Draw, candidate: Scores) -> tuple[float | None, Scores]:
    """The estimate of a candidate that is dropped, and its scores on the items of the race."""
    for block in range(len(draw.blocks) - 1):
        found = seen(candidate, draw, block)
        decision = decide_by_difference(settings, draw, found, block)
        if decision.drop:
            return decision.estimate, found
    return None, candidate


def _paired(
    settings: RaceSettings, objective: Objective, incumbent: Scores, candidate: Scores
) -> tuple[float | None, Scores]:
    """The same of a paired race, whose blocks have a share of every task."""
    count = round(_count(candidate) / BLOCK)
    earlier: list[dict[str, int]] = []
    for number in range(1, count):
        block = ItemBlock("search", 0, number, of=count)
        found = Scores(
            {
                task: _part(score, score.items[slice(*block.positions(len(score.items)))])
                for task, score in candidate.tasks.items()
            },
            {},
        )
        decision = decide(settings, objective, incumbent, found, earlier)
        if decision.drop:
            return decision.estimate, found
        earlier.append({task: len(score.items) for task, score in found.tasks.items()})
    return None, candidate


def _count(scores: Scores) -> int:
    return sum(len(task.items) for task in scores.tasks.values())


def _row(rule: str, found: Sequence[Replay]) -> dict[str, Any]:
    errors = [error for each in found for error in each.errors]
    return {
        "rule": rule,
        "of full": round(statistics.fmean(each.used for each in found), 3),
        "would have led": sum(each.led for each in found),
        "of these dropped": sum(each.lost for each in found),
        "points below the best": round(statistics.fmean(each.below for each in found), 3),
        "mean error": round(statistics.fmean(errors), 2),
        "of an estimate": round(statistics.stdev(errors), 2),
    }


def _searched(folder: Path) -> SearchSpec:
    """The spec of a toy search without baselines that was scored in full."""
    spec = toy_search(baselines=[], storage=f"sqlite:///{folder}/study.db", artifacts=str(folder / "artifacts"))
    run_search(spec, ray="none")
    return spec


def _stored(spec: SearchSpec) -> Trials:
    stored = read_search(spec)
    scores = list(ended_scores(stored.study, stored.storage, stored.artifacts))
    return Trials(scores, Objective(aggregate="weighted_mean", weights=dict.fromkeys(scores[0].tasks, 1.0)))


if __name__ == "__main__":
    main()
