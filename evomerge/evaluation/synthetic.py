"""An evaluator that needs no model: scores are an analytic function of the params, items are coins with fixed luck.

It stands in for real scoring where the machinery itself is looked at: tests of samplers, crashes and resumption, and
simulations with thousands of trials.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import NormalDist
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from evomerge.documents import Frozen, validate
from evomerge.errors import InvalidInput, MergeError, unknown_name
from evomerge.evaluation.evaluator import Candidate
from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.packs.items import ItemBlock, Split
from evomerge.packs.pack import HashSplit
from evomerge.packs.split import check_split, make_split
from evomerge.seeding import derive

RULE = HashSplit(by="hash", shares={"calibration": 0.1, "search": 0.4, "held_out": 0.5})
EXIT_STATUS = 70

_Share = Annotated[float, Field(ge=0, le=1)]


class SyntheticSettings(Frozen):
    """Settings of the simulation.

    Attributes:
        function: shape of the landscape: `sphere`, `valley` (narrow and curved, like Rosenbrock's), `plateau`
            (steps without a slope between them), or `noise` (none at all: every candidate, baselines included, is as
            good as any other, and each outcome is a coin of its own, so that whatever leads does so by pure luck).
        tasks: number of tasks; each has its optimum near a common one.
        items: documents of each task, of which 10 % calibrate, 40 % are searched on and 50 % held out.
        conflict: how far the optima of the tasks lie from the common one, as a share of the box.
        steepness: how fast a candidate gets worse with its distance from the optimum.
        noise: standard deviation of the luck of a candidate, in the probability of a right answer. It is the same
            luck on every item, held-out ones included: a difference between candidates that the landscape hides.
        gold: whether outcomes come with the log-probability of the right answer, as those of multiple choice do.
        delay_seconds: how long scoring takes; `delay_spread` is the sigma of its log-normal spread.
        raising: share of the candidates whose scoring raises.
        not_a_number: share of the candidates whose outcomes are NaN.
        exiting: share of the candidates that end the process at once, as a worker does that runs out of memory.
        bounds: param -> [low, high]; those that the search gives come first.
    """

    function: Literal["sphere", "valley", "plateau", "noise"] = "sphere"
    tasks: Annotated[int, Field(ge=1)] = 2
    items: Annotated[int, Field(ge=20)] = 200
    conflict: Annotated[float, Field(ge=0, le=0.2)] = 0.1
    steepness: Annotated[float, Field(gt=0)] = 8.0
    noise: Annotated[float, Field(ge=0)] = 0.0
    gold: bool = False
    delay_seconds: Annotated[float, Field(ge=0)] = 0.0
    delay_spread: Annotated[float, Field(ge=0)] = 0.0
    raising: _Share = 0.0
    not_a_number: _Share = 0.0
    exiting: _Share = 0.0
    bounds: Mapping[str, tuple[float, float]] = {}

    @model_validator(mode="after")
    def _shares_fit(self) -> SyntheticSettings:
        if self.raising + self.not_a_number + self.exiting > 1:
            raise ValueError("raising, not_a_number and exiting together must not exceed 1")
        return self


class SyntheticEvaluator:
    """Scores params without a model. Baselines, which have no params, get the score of the centre and never fail."""

    def __init__(
        self,
        settings: SyntheticSettings | Mapping[str, Any] | None = None,
        *,
        bounds: Mapping[str, tuple[float, float]] | None = None,
        seed: int = 0,
        split: Split | None = None,
    ) -> None:
        if not isinstance(settings, SyntheticSettings):
            settings = validate(SyntheticSettings, dict(settings or {}), "evaluator 'synthetic'")
        self.settings = settings
        self._seed = seed
        self._bounds = {**settings.bounds, **(bounds or {})}
        self._tasks = [f"task_{number}" for number in range(settings.tasks)]
        documents = {task: [{"task": task, "item": item} for item in range(settings.items)] for task in self._tasks}
        if split is None:
            split = make_split(documents, RULE, seed)
        else:
            check_split(split, documents, RULE)
        self._split = split
        self._difficulty = {
            task: [_unit(seed, "difficulty", task, item) for item in range(settings.items)] for task in self._tasks
        }

    @property
    def fingerprint(self) -> str:
        content = {"settings": self.settings.model_dump(mode="json"), "bounds": self._bounds, "seed": self._seed}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def split(self) -> Split:
        return self._split

    @property
    def weights(self) -> dict[str, float]:
        return dict.fromkeys(self._tasks, 1.0)

    def score(self, candidate: Candidate, items: ItemBlock) -> Scores:
        """Score a candidate on a block of items. Tasks that have no items there are left out.

        Raises:
            MergeError: planted failures, if the settings ask for them.
        """
        started = time.perf_counter()
        key = _params_key(candidate.params)
        self._delay(key)
        failure = self._failure(key) if candidate.params else None
        tasks = {}
        for task, ids in self._split.items(items).items():
            if not ids:
                continue
            chance = self.probability(candidate.params, task)
            outcomes = [float(luck < chance) for luck in self._luck(candidate, task, ids)]
            scores = _task_scores(ids, [math.nan] * len(ids) if failure == "not_a_number" else outcomes)
            gold = (math.log(min(max(chance, 1e-9), 1.0)),) * len(ids) if self.settings.gold else None
            tasks[task] = replace(scores, gold=gold)
        return Scores(tasks, {"forward": time.perf_counter() - started})

    def probability(self, params: Mapping[str, Any], task: str) -> float:
        """Probability that a candidate answers an item of a task."""
        point, optimum = self._point(params), self.optimum(task)
        distance = _DISTANCES[self.settings.function]([point[name] - optimum[name] for name in point])
        luck = self.settings.noise * _normal(self._seed, "noise", task, _params_key(params))
        return 0.05 + 0.9 * math.exp(-self.settings.steepness * distance) + luck

    def _luck(self, candidate: Candidate, task: str, ids: Sequence[int]) -> list[float]:
        """Thresholds, one per item, that the chance of a right answer has to exceed."""
        if self.settings.function != "noise":
            return [self._difficulty[task][item] for item in ids]
        key = _params_key(candidate.params) if candidate.params else candidate.recipe.digest
        return [_unit(self._seed, "coin", task, item, key) for item in ids]

    def optimum(self, task: str) -> dict[str, float]:
        """Optimum of a task in coordinates of the box: 0 is the low bound and 1 the high one."""
        spread = self.settings.conflict
        return {
            name: 0.2
            + spread
            + (0.6 - 2 * spread) * _unit(self._seed, "optimum", name)
            + spread * (2 * _unit(self._seed, "optimum", name, task) - 1)
            for name in self._bounds
        }

    def _point(self, params: Mapping[str, Any]) -> dict[str, float]:
        """The candidate in coordinates of the box; what it does not say stands in the middle."""
        point = dict.fromkeys(self._bounds, 0.5)
        for name, value in params.items():
            if isinstance(value, str | bool) or value is None:
                continue  # choices move no coordinate, but do key the noise and the failures
            if name not in self._bounds:
                raise unknown_name("param of evaluator 'synthetic' (it needs bounds for each):", name, self._bounds)
            low, high = self._bounds[name]
            if not low < high:
                raise InvalidInput(f"bounds of param {name!r} are {low} and {high}; low must be below high")
            point[name] = (float(value) - low) / (high - low)
        return point

    def _delay(self, key: str) -> None:
        settings = self.settings
        if settings.delay_seconds:
            time.sleep(settings.delay_seconds * math.exp(settings.delay_spread * _normal(self._seed, "delay", key)))

    def _failure(self, key: str) -> str | None:
        draw = _unit(self._seed, "failure", key)
        settings = self.settings
        for kind, share in (
            ("raising", settings.raising),
            ("not_a_number", settings.not_a_number),
            ("exiting", settings.exiting),
        ):
            draw -= share
            if draw < 0:
                if kind == "raising":
                    raise MergeError("planted failure: this candidate raises")
                if kind == "exiting":
                    os._exit(EXIT_STATUS)
                return kind
        return None


def _sphere(offsets: list[float]) -> float:
    return sum(offset**2 for offset in offsets) / max(1, len(offsets))


def _valley(offsets: list[float]) -> float:
    """Rosenbrock's function, its minimum moved to the origin, with a tenth of its steepness across the valley."""
    bent = sum(10 * (after - before**2 - 2 * before) ** 2 + before**2 for before, after in pairwise(offsets))
    return (bent + offsets[-1] ** 2 if offsets else 0.0) / max(1, len(offsets))


def _plateau(offsets: list[float]) -> float:
    return math.floor(40 * _sphere(offsets)) / 40


def _nowhere(offsets: list[float]) -> float:
    """Everywhere equally far: with the default steepness, half of the answers are right."""
    return math.log(2) / 8


_DISTANCES = {"sphere": _sphere, "valley": _valley, "plateau": _plateau, "noise": _nowhere}


def _task_scores(ids: tuple[int, ...], outcomes: list[float]) -> TaskScores:
    count = len(outcomes)
    value = sum(outcomes) / count
    stderr = math.sqrt(sum((each - value) ** 2 for each in outcomes) / (count - 1) / count) if count > 1 else None
    return TaskScores(
        metric="acc",
        higher_is_better=True,
        items=ids,
        outcomes=tuple(outcomes),
        value=value,
        stderr=stderr,
        aggregate="mean",
    )


def _params_key(params: Mapping[str, Any]) -> str:
    text = json.dumps(dict(params), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _unit(seed: int, *keys: int | str) -> float:
    return ((derive(seed, *keys) >> 12) + 0.5) / 2.0**52  # never 0 or 1


def _normal(seed: int, *keys: int | str) -> float:
    return NormalDist().inv_cdf(_unit(seed, *keys))
