"""Quality of a search by what it costs, where gradients of calibration items help it, and where they do not.

    python benchmarks/gradient.py --landscapes [--dimensions 24 120] [--seeds 10] [--arms ...] [--json]
    python benchmarks/gradient.py --toy [--dimensions 24] [--seeds 1] [--arms ...] [--json]

All is counted in forward passes of one item: a candidate costs those of its 1,200 search items, an item that is read
with gradients three. One worker; *full* is what 200 candidates cost. The figures are what the best candidate by its
search items is worth after 1/50, 1/20, 1/10 and all of that; nothing where no candidate has been scored by then.

    cma_es      Optuna's CmaEsSampler, to the end
    cma         ours, with its defaults, to the end
    learned     Adam on the calibration items, in the coordinates of the space; its end is the only candidate

and, up to 1/10, from the point that was learned:

    start       cma with first steps of `--first-step` of the usual ones
    covariance  that, with the inverse of the slopes' covariance as its first covariance
    cut         that, where all coordinates of one expert share an offset whose slopes cannot be told from noise
    inject      start, and every fourth candidate is the best one moved along the slopes of all calibration items there,
                by a radius that follows predicted against real gain

`--landscapes`: those of landscapes.py, scores of 1,200 items, drawn. Slopes are those of the loss of another instance,
whose optimum is displaced by 0.03 of the box in each coordinate: calibration items are no search items. Those of one
item scatter as a log-likelihood's do, with the curvature at the optimum as their covariance, `--noise` times. The
figures are true regrets, medians over landscapes and seeds.

`--toy`: merges of the toy models by one weight per expert and group, 0 to 4/n. 24: three blocks of two layers and all
else; 114: attention, MLP and norms of each layer and all else. The figures are scores on the held-out items, means.
"""

from __future__ import annotations

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1"}  # read when they are imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import atexit
import itertools
import logging
import math
import statistics
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import optuna
import torch
from contestants import BoxSpace, OptunaContestant
from landscapes import LANDSCAPES, landscape
from machine import progress, report
from numpy.typing import NDArray
from toy_example import toy_search

from evomerge.evaluation import ItemBlock
from evomerge.evaluation.calibration_texts import calibration_texts
from evomerge.jobs import Cost, Outcome, Score, Scored, Train, Trained
from evomerge.learned.learned_settings import LearnedSettings
from evomerge.learned.learned_training import source_shares
from evomerge.learned.losses import item_losses
from evomerge.learned.vector_coefficients import CoefficientGradients, initial_vector_coefficients
from evomerge.opening.inputs import open_inputs
from evomerge.optimisation.coefficients import roles_of
from evomerge.optimisation.gradients import stream_gradients
from evomerge.optimisation.student import Student
from evomerge.packs.items import Part
from evomerge.recipe import Recipe
from evomerge.samplers import build_sampler
from evomerge.samplers.base import SearchSampler
from evomerge.samplers.cma import CmaSampler
from evomerge.spaces.nearest import nearest_params
from evomerge.worker import Worker

Point = NDArray[np.float64]

CANDIDATES: Final = 200
ITEMS: Final = 1200  # of a candidate
SHARES: Final = (50, 20, 10, 1)  # of the full cost
CALIBRATION: Final = 768
BATCH: Final = 48  # items of a step
GRADIENT_FORWARDS: Final = 3
BATCH_SIZE: Final = 1024
SHIFT: Final = 0.03  # of the optimum for calibration items, as a share of the box

SPACES: Final[Mapping[int, Mapping[str, Any]]] = {
    24: {"depth": {"blocks": 2}, "outside": "own"},
    114: {"depth": "layers", "parts": ["attention", "mlp"], "outside": "own"},
}


@dataclass(frozen=True)
class Learning:
    """Settings of a descent in the coordinates of the space.

    Attributes:
        loss, items: the items of each skill of the toy models, and what is learned from them.
        start: all weights of the toy models, as a multiple of 1 / sqrt(n).
    """

    steps: int = 60
    batch: int = BATCH
    loss: tuple[tuple[str, float], ...] = (("answers", 1.0),)
    stop: float = 0.25
    stop_every: int = 5
    rate: float = 0.05
    items: int = 128


class Ground(Protocol):
    """A space with something to search for, as points of the unit cube."""

    dimensions: int
    kin: NDArray[np.int64]  # coordinates of one kind, which may share a step

    def measured(self, point: Point, key: tuple[int, ...]) -> tuple[float, float]:
        """The score on the search items, and its cost."""

    def quality(self, point: Point) -> float: ...
    def learned(self, settings: Learning) -> tuple[Point, float]:
        """The end of a descent, and its cost."""

    def slopes(self, point: Point) -> tuple[Point, float]:
        """[batches, dimensions] of the log-likelihood of all calibration items, and their cost."""


@dataclass
class Course:
    """The best candidate so far by its score, and what it is worth, against cost."""

    seed: int
    limit: float
    best: float = -math.inf
    point: Point | None = None
    spent: float = 0.0
    known: list[tuple[float, Point]] | None = None

    def candidate(self, where: Ground, point: Point) -> float:
        if self.known is None:
            self.known = []
        value, cost = where.measured(point, (self.seed, len(self.known)))
        self.spent += cost
        if value > self.best:
            self.best, self.point = value, point
        assert self.point is not None
        self.known.append((self.spent, self.point))
        return value

    @property
    def open(self) -> bool:
        return self.spent + ITEMS <= self.limit * 1.001

    def at(self, limit: float) -> Point | None:
        found = [point for spent, point in self.known or [] if spent <= limit * 1.001]
        return found[-1] if found else None


Arm = Callable[[Ground, Course, Learning, float], None]


def _search(where: Ground, course: Course, contestant: OptunaContestant) -> None:
    order = 0
    while course.open:
        handle, point = contestant.ask()
        contestant.tell(handle, course.candidate(where, point), order)
        order += 1


def _optuna(make: Callable[[int], optuna.samplers.BaseSampler]) -> Arm:
    def arm(where: Ground, course: Course, settings: Learning, step: float) -> None:
        _search(where, course, OptunaContestant(make(course.seed), BoxSpace(where.dimensions)))

    return arm


def _cma(where: Ground, course: Course, settings: Learning, step: float) -> None:
    space = BoxSpace(where.dimensions)
    _search(where, course, OptunaContestant(_sampler(space, course.seed, 1.0), space))


def _learn(where: Ground, course: Course, settings: Learning) -> Point:
    point, cost = where.learned(settings)
    course.spent += cost
    return point


def _learned(where: Ground, course: Course, settings: Learning, step: float) -> None:
    course.candidate(where, _learn(where, course, settings))


def _start(where: Ground, course: Course, settings: Learning, step: float) -> None:
    point = _learn(where, course, settings)
    _search(where, course, _from(point, course.seed, step))


def _covariance(where: Ground, course: Course, settings: Learning, step: float) -> None:
    """C0 = (covariance of the slopes + rho I)^-1, rho a tenth of its mean eigenvalue, of the usual volume."""
    point = _learn(where, course, settings)
    slopes, cost = where.slopes(point)
    course.spent += cost
    spread = np.cov(slopes.T)
    inverse = np.linalg.inv(spread + 0.1 * np.trace(spread) / len(spread) * np.eye(len(spread)))
    inverse /= math.exp(np.linalg.slogdet(inverse)[1] / len(inverse))
    contestant = _from(point, course.seed, step, lambda: None)
    sampler = contestant._sampler
    assert isinstance(sampler, CmaSampler)
    model = sampler._evolution.strategy._strategy.sm
    model.C = inverse
    model.update_now(-1)
    _search(where, course, contestant)


def _cut(where: Ground, course: Course, settings: Learning, step: float) -> None:
    """Coordinates whose slope is less than two standard errors share one offset among those of their kind."""
    point = _learn(where, course, settings)
    slopes, cost = where.slopes(point)
    course.spent += cost
    error = slopes.std(axis=0, ddof=1) / math.sqrt(len(slopes))
    told = np.abs(slopes.mean(axis=0)) > 2 * error
    columns = [np.eye(where.dimensions)[index] for index in np.flatnonzero(told)]
    for kind in dict.fromkeys(where.kin[~told].tolist()):
        columns.append(((where.kin == kind) & ~told).astype(float))
    spread = np.array(columns)  # [fewer, dimensions]
    space = BoxSpace(len(spread))
    contestant = OptunaContestant(_sampler(space, course.seed, step), space)
    order = 0
    course.candidate(where, point)
    while course.open:
        handle, offset = contestant.ask()
        contestant.tell(handle, course.candidate(where, np.clip(point + (offset - 0.5) @ spread, 0, 1)), order)
        order += 1


def _inject(where: Ground, course: Course, settings: Learning, step: float) -> None:
    """Every fourth candidate is the best one, moved up the mean slopes by a radius that doubles or halves."""
    point = _learn(where, course, settings)
    contestant = _from(point, course.seed, step)
    radius, order, slopes, at = 0.05 * math.sqrt(where.dimensions), 0, None, None
    while course.open:
        moved = None
        if order % 4 == 3 and course.point is not None:
            if slopes is None or at is not course.point:
                found, cost = where.slopes(course.point)
                course.spent += cost
                slopes, at = found.mean(axis=0), course.point
            moved = np.clip(course.point + radius * slopes / np.linalg.norm(slopes), 0, 1)
        handle, drawn = contestant.ask(moved)
        # A score is about a mean probability, whose slope is itself times that of its logarithm.
        predicted = 0.0 if moved is None else course.best * float(slopes @ (drawn - course.point))
        before = course.best
        value = course.candidate(where, drawn)
        contestant.tell(handle, value, order)
        if moved is not None and predicted > 0:
            ratio = (value - before) / predicted
            radius *= 0.5 if ratio < 0.25 else 2.0 if ratio > 0.75 else 1.0
        order += 1


class _Enqueuing(OptunaContestant):
    """A sampler that takes points of others, too."""

    def ask(self, point: Point | None = None) -> tuple[optuna.Trial, Point]:  # type: ignore[override]
        if point is not None:
            self._study.enqueue_trial(dict(zip(self._distributions, point.tolist(), strict=True)))
        return super().ask()


def _from(point: Point, seed: int, step: float, *_: Any) -> _Enqueuing:
    space = BoxSpace(len(point))
    space.centre = dict(zip(space.distributions, np.clip(point, 0, 1).tolist(), strict=True))
    contestant = _Enqueuing(_sampler(space, seed, step), space)
    contestant._study.enqueue_trial(dict(space.centre))
    return contestant


def _sampler(space: BoxSpace, seed: int, step: float) -> SearchSampler:
    return build_sampler("cma", {}, seed=seed, space=space, workers=1, first_step=step)


ARMS: Final[Mapping[str, Arm]] = {
    "cma_es": _optuna(lambda seed: optuna.samplers.CmaEsSampler(seed=seed)),
    "cma": _cma,
    "random": _optuna(lambda seed: optuna.samplers.RandomSampler(seed=seed)),
    "learned": _learned,
    "start": _start,
    "covariance": _covariance,
    "cut": _cut,
    "inject": _inject,
}
TO_THE_END: Final = ("cma_es", "cma", "random")


class NoisyLandscape:
    """A landscape of landscapes.py, with slopes of another instance near it."""

    def __init__(self, name: str, dimensions: int, seed: int, *, noise: float) -> None:
        self.dimensions = dimensions
        self.kin = np.zeros(dimensions, dtype=np.int64)
        self._where = landscape(name, dimensions, seed)
        self._random = np.random.default_rng([seed, dimensions, 99])
        self._optimum = self._where.optimum + SHIFT * self._random.standard_normal(dimensions)
        curvature = self._curvature()
        values, vectors = np.linalg.eigh(curvature)
        self._spread = noise * vectors * np.sqrt(np.maximum(values, 0.0))  # of the slopes of one item

    def measured(self, point: Point, key: tuple[int, ...]) -> tuple[float, float]:
        return self._where.measured(point, ITEMS, key), float(ITEMS)

    def quality(self, point: Point) -> float:
        return 1.0 - self._where.quality(point)

    def learned(self, settings: Learning) -> tuple[Point, float]:
        """Adam from the centre; every tenth of its steps is measured, and the best one is the result."""
        point = np.full(self.dimensions, 0.5)
        first, second = np.zeros(self.dimensions), np.zeros(self.dimensions)
        best, found, cost = self._loss(point), point, 0.0
        for number in range(1, settings.steps + 1):
            slope = self._slope(point) + self._noise(settings.batch)
            first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
            move = first / (1 - 0.9**number) / (np.sqrt(second / (1 - 0.999**number)) + 1e-8)
            point = np.clip(point - settings.rate / 3 * move, 0, 1)
            cost += GRADIENT_FORWARDS * settings.batch
            if number % 5 == 0:
                cost += settings.stop * CALIBRATION
                # The loss of a part of the items, which errs by as much as its slopes do.
                value = self._loss(point)
                if value < best:
                    best, found = value, point
        return found, cost

    def slopes(self, point: Point) -> tuple[Point, float]:
        batches = CALIBRATION // 24
        slopes = [-self._slope(point) - self._noise(24) for _ in range(batches)]
        return np.array(slopes), float(GRADIENT_FORWARDS * CALIBRATION)

    def _noise(self, items: int) -> Point:
        return np.asarray(self._spread @ self._random.standard_normal(self.dimensions)) / math.sqrt(items)

    def _loss(self, point: Point) -> float:
        return self._where.loss(point - self._optimum) / self._where.scale

    def _slope(self, point: Point, step: float = 1e-4) -> Point:
        offsets = step * np.eye(self.dimensions)
        return np.array([(self._loss(point + e) - self._loss(point - e)) / (2 * step) for e in offsets])

    def _curvature(self, step: float = 1e-2) -> Point:
        offsets = step * np.eye(self.dimensions)
        rows = [(self._slope(self._optimum + e) - self._slope(self._optimum - e)) / (2 * step) for e in offsets]
        found = np.array(rows)
        return (found + found.T) / 2


class ToyGround:
    """Merges of the toy models by one weight per expert and group."""

    def __init__(self, dimensions: int, seed: int, folder: Path) -> None:
        torch.set_num_threads(1)
        logging.disable(logging.WARNING)
        space = {
            "name": f"task-arithmetic-{dimensions}",
            "groups": SPACES[dimensions],
            "methods": {
                "task_arithmetic": {"parameters": {"weight": {"low": 0, "high": 4, "divided_by_sources": True}}}
            },
        }
        self._inputs = open_inputs(toy_search(space=space, seed=seed, artifacts=str(folder)))
        self._space, self._folder = self._inputs.space, folder
        self._worker = Worker(self._inputs.setup())
        self._scores: dict[tuple[str, Part], tuple[float, Cost]] = {}
        self._learned: dict[Learning, tuple[Point, float]] = {}
        self._experts = [expert.ref.name for expert in self._inputs.experts]
        self.dimensions = self._space.dimensions
        assert self.dimensions == dimensions, self.dimensions
        self._names = list(self._space.distributions)
        self._high = 4 / len(self._experts)
        self.kin = np.array([self._experts.index(name.split(".")[-2]) for name in self._names])

    def measured(self, point: Point, key: tuple[int, ...] = ()) -> tuple[float, float]:
        value, cost = self._score(self._recipe(point), "search")
        return value, float(cost.forwards(cost) or 0.0)

    def quality(self, point: Point) -> float:
        return self._score(self._recipe(point), "held_out")[0]

    def learned(self, settings: Learning) -> tuple[Point, float]:
        if settings in self._learned:
            return self._learned[settings]
        weight = 1 / math.sqrt(len(self._experts))
        initial = self._recipe(np.full(self.dimensions, weight / self._high))
        chosen = self._settings(dict(settings.loss)).model_copy(
            update={
                "steps": settings.steps,
                "batch_size": max(1, settings.batch // len(self._experts)),
                "stop_share": settings.stop,
                "stop_every": settings.stop_every,
                "learning_rate": settings.rate,
            }
        )
        job = Train(
            key="learned",
            recipe=initial,
            settings=chosen.model_dump(mode="json"),
            calibration={
                name: each.model_copy(update={"items": settings.items}) for name, each in self._calibration.items()
            },
            trainer="learned",
        )
        *_, outcome = self._worker.events(job)
        if not isinstance(outcome, Outcome) or not isinstance(outcome.result, Trained):
            raise SystemExit(f"nothing was learned: {outcome}")
        params = nearest_params(self._space, outcome.result.recipe)
        assert params is not None
        point = np.array([params[name] for name in self._names]) / self._high
        self._learned[settings] = point, self._forwards(outcome.cost)
        return self._learned[settings]

    def slopes(self, point: Point, loss: Mapping[str, float] | None = None) -> tuple[Point, float]:
        settings = self._settings({"answers": 1.0} if loss is None else loss)
        texts = {name: calibration_texts(self._worker.evaluator, each) for name, each in self._calibration.items()}
        recipe = self._recipe(point)
        rows = []
        with self._worker.bank.borrow() as (model, live):
            student = Student(model, live, self._worker.bank.weights, recipe)
            roles = roles_of(model, {name: live[name] for name in student.names})
            coefficients = initial_vector_coefficients(
                recipe, roles, settings, files=self._folder, device=student.device
            )
            coefficients.set_in(student)
            parameters = {name: live[name] for name in student.names}
            for start in range(0, min(map(len, texts.values())), 4):
                some = {name: list(each[start : start + 4]) for name, each in texts.items()}
                gradients = CoefficientGradients(coefficients, student)
                with torch.enable_grad(), stream_gradients(parameters, gradients.take):
                    item_losses(
                        some, student=student, settings=settings, weights=source_shares(some, {}), gradients=True
                    )
                found = {
                    f"{key}.{source}.weight": float(value)
                    for key, total in gradients.totals.items()
                    for source, value in zip(coefficients.sources, total, strict=True)
                }
                rows.append([-self._high * found[name] for name in self._names])
            cost = Cost(forward_tokens=student.forward_tokens, gradient_tokens=student.gradient_tokens)
        return np.array(rows), self._forwards(cost)

    @property
    def _calibration(self) -> dict[str, Any]:
        return {each.name: each.calibration for each in self._inputs.spec.experts if each.calibration is not None}

    def _settings(self, loss: Mapping[str, float]) -> LearnedSettings:
        groups = {group.label: group.tensors for group in self._space.groups}
        return LearnedSettings.model_validate({"granularity": "groups", "groups": groups, "loss": dict(loss)})

    def _recipe(self, point: Point) -> Recipe:
        return self._space.decode({name: self._high * float(x) for name, x in zip(self._names, point, strict=True)})

    def _forwards(self, cost: Cost) -> float:
        _, scoring = self._score(self._recipe(np.full(self.dimensions, 0.5)), "search")
        return float(cost.forwards(scoring) or 0.0)

    def _score(self, recipe: Recipe, part: Part) -> tuple[float, Cost]:
        key = (recipe.digest, part)
        if key not in self._scores:
            job = Score(key="", recipe=recipe, items=ItemBlock(part), batch_size=BATCH_SIZE)
            outcome = self._worker.run(job)
            if not isinstance(outcome.result, Scored):
                raise SystemExit(f"a merge of the toy models cannot be scored: {outcome.result}")
            value = statistics.fmean(task.value for task in outcome.result.scores.tasks.values())
            self._scores[key] = value, outcome.cost
        return self._scores[key]


@cache
def toy(dimensions: int, seed: int) -> ToyGround:
    """One per process: what has been learned and scored once is known."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return ToyGround(dimensions, seed, Path(folder.name))


def run(task: tuple[str, int, int, str, Learning, float, float]) -> dict[str, Any]:
    """One arm on one ground with one seed, as a row."""
    name, dimensions, seed, arm, settings, step, noise = task
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    where: Ground = toy(dimensions, seed) if name == "toy" else NoisyLandscape(name, dimensions, seed, noise=noise)
    full = float(CANDIDATES * ITEMS)
    course = Course(seed, full if arm in TO_THE_END else full / 10)
    ARMS[arm](where, course, settings, step)
    found = {share: course.at(full / share) for share in SHARES}
    return {
        "ground": name,
        "dimensions": dimensions,
        "seed": seed,
        "arm": arm,
        "at": {share: None if point is None else where.quality(point) for share, point in found.items()},
        "search": course.best,
        "first": (course.known or [(math.nan,)])[0][0],
        "spent": course.spent,
    }


def table(rows: Sequence[Mapping[str, Any]], mean: Callable[[Sequence[float]], float]) -> list[dict[str, Any]]:
    """One line for each arm and number of dimensions."""
    lines = []
    for dimensions, arm in dict.fromkeys((row["dimensions"], row["arm"]) for row in rows):
        same = [row for row in rows if (row["dimensions"], row["arm"]) == (dimensions, arm)]
        line: dict[str, Any] = {"dimensions": dimensions, "arm": arm, "runs": len(same)}
        for share in SHARES:
            values = [row["at"][share] for row in same]
            known = [value for value in values if value is not None]
            line["all" if share == 1 else f"1/{share}"] = mean(known) if len(known) == len(values) else None
        line["first candidate after"] = round(statistics.median(row["first"] for row in same))
        lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--landscapes", action="store_true", help="synthetic ones, with gradients that have noise")
    kind.add_argument("--toy", action="store_true", help="merges of the toy models")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[24])
    parser.add_argument("--seeds", type=int, default=1, help="from 1 on")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=[name for name in ARMS if name != "random"])
    parser.add_argument("--steps", type=int, default=Learning.steps, help="of a descent, at most")
    parser.add_argument("--batch", type=int, default=Learning.batch, help="items of a step")
    parser.add_argument("--stop-every", type=int, default=Learning.stop_every, help="steps between measurements")
    parser.add_argument(
        "--items", type=int, default=Learning.items, help="calibration items of each skill (toy models)"
    )
    parser.add_argument("--rate", type=float, default=Learning.rate, help="of Adam")
    parser.add_argument("--loss", default="answers=1", help="of the toy models, such as answers=1,errors=1")
    parser.add_argument("--first-step", type=float, default=0.3, help="as a share of the usual one")
    parser.add_argument("--noise", type=float, default=1.0, help="of the slopes on landscapes")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, no table")
    given = parser.parse_args()
    loss = tuple((name, float(value)) for name, value in (each.split("=") for each in given.loss.split(",")))
    settings = Learning(
        steps=given.steps,
        batch=given.batch,
        loss=loss,
        stop_every=given.stop_every,
        rate=given.rate,
        items=given.items,
    )
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    grounds = ["toy"] if given.toy else list(LANDSCAPES)
    tasks = [
        (name, dimensions, seed, arm, settings, given.first_step, given.noise)
        for dimensions, arm, name, seed in itertools.product(given.dimensions, given.arms, grounds, seeds)
    ]
    rows = []
    with get_context("spawn").Pool(given.processes) as pool:
        for number, row in enumerate(pool.imap(run, tasks), start=1):
            rows.append(row)
            if given.toy:
                progress(f"{number}/{len(tasks)} {row}")
    document = {
        "benchmark": "gradient",
        "seeds": [seeds[0], seeds[-1]],
        "descent": asdict(settings),
        "first step": given.first_step,
        "noise": given.noise,
        "runs": rows,
    }
    report(document, table(rows, statistics.fmean if given.toy else statistics.median), given.json)


if __name__ == "__main__":
    main()
