"""Model-based search with a random forest, as SMAC does it, on the most items that enough candidates were scored on.

F. Hutter et al., "Sequential model-based optimization for general algorithm configuration" (SMAC), 2011; M. Lindauer
et al., "SMAC3", JMLR 23 (2022), for the defaults: ten trees on bootstrap samples, expected improvement of the
logarithm of the cost, one random proposal in five.

With fidelity: hyperband or successive_halving a candidate has a value at every rung that it reached, and a complete one
its value on all items. Values at different rungs are never compared: the forest is fitted to one number of items, the
largest on which enough candidates were scored.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sklearn.ensemble import RandomForestRegressor

from evomerge.evolution.unit_cube import UnitCube
from evomerge.samplers import settings
from evomerge.samplers.acquisition import log_expected_improvement, log_scaled
from evomerge.samplers.base import SEEDS, SamplerInputs, SeededSampler, in_tell_order, refuse_hyperband
from evomerge.samplers.infeasible import excess_of
from evomerge.seeding import derive
from evomerge.storage.attributes import RUNGS
from evomerge.storage.optuna_internals import cached_trials

__all__ = ["ForestSampler", "build"]

Vector = NDArray[np.float64]

ABSENT = -1.0  # coordinate of a parameter that does not exist; all others are in [0, 1]
RANDOM_POINTS = 1000
STARTS = 5  # of local searches
STEPS = 10
SPREAD = 0.2  # deviation of a neighbour's coordinate


def build(inputs: SamplerInputs) -> ForestSampler:
    """Build the sampler from its settings: see `ForestSettings`.

    Raises:
        InvalidInput: an unknown setting, or a value out of its range.
    """
    chosen = settings.read("forest", inputs.settings, settings.ForestSettings)
    return ForestSampler(
        inputs, startup=chosen.n_startup_trials, trees=chosen.n_trees, random_share=chosen.random_share
    )


class ForestSampler(SeededSampler):
    """Proposes the point of largest log EI under a random forest, over numbers, categories and conditional parameters.

    The forest is fitted anew for every proposal, from the study alone. Its features are the coordinates of the unit
    cube, one column per choice of a category, and a value outside the cube where a parameter does not exist. Trials
    that failed while they were scored teach nothing. Dropped ones count with their values at the rungs that they
    reached, or, after a race, with their estimate on all items.

    Args:
        startup: see `n_startup_trials` of `ForestSettings`.
        trees: of the forest.
        random_share: of the proposals after the first ones.
    """

    def __init__(self, inputs: SamplerInputs, *, startup: int, trees: int, random_share: float) -> None:
        super().__init__(inputs.space, seed=inputs.seed)
        self._startup = startup
        self._trees = trees
        self._random_share = random_share
        self._cube = UnitCube(inputs.space.distributions)
        self._choices = [
            len(each.choices) if isinstance(each, CategoricalDistribution) else 0 for each in self._cube.free.values()
        ]
        self._categories = [name for name, choices in zip(self._cube.free, self._choices, strict=True) if choices]
        self._active: dict[tuple[Any, ...], NDArray[np.bool_]] = {}  # a cache: a function of the space
        self._fill = self._cube.decode(np.full(len(self._choices), 0.5))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._cube.free)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        refuse_hyperband(study, "forest")
        if not self._cube.free:
            return {}
        key = derive(self._seed, "forest", self.ordinal(study, trial))
        params = self._propose(study, key, np.random.Generator(np.random.Philox(key)))
        return {name: params[name] for name in search_space}

    def _propose(self, study: Study, key: int, draws: np.random.Generator) -> dict[str, Any]:
        trials = cached_trials(study)
        at_random = self._random_point(draws)
        known = self._known(study, trials)
        if known is None or draws.random() < self._random_share:
            return self._cube.decode(at_random)
        points, costs = known
        forest = Forest(self._features(points), log_scaled(costs), trees=self._trees, seed=key % SEEDS)
        proposed = {self._identity(point) for point in self._points(trials)}
        best = self._best_candidate(forest, points, proposed, draws)
        return self._cube.decode(at_random if best is None else best)

    def _random_point(self, draws: np.random.Generator) -> Vector:
        return draws.random(len(self._choices))

    def _known(self, study: Study, trials: Sequence[FrozenTrial]) -> tuple[Vector, Vector] | None:
        """Points and costs on the largest number of items with enough of them; None without any.

        A proposal that was refused without being scored costs as much as the worst one with a score, as in SMAC.
        """
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        by_items: dict[float, list[tuple[FrozenTrial, float]]] = defaultdict(list)
        usable = [trial for trial in in_tell_order(trials) if self._is_usable(trial)]
        for trial in usable:
            for items, value in values_by_items(trial).items():
                by_items[items].append((trial, sign * value))
        for items in sorted(by_items, reverse=True):
            if len(by_items[items]) >= self._startup:
                scored, costs = zip(*by_items[items], strict=True)
                refused = [trial for trial in usable if excess_of(trial) is not None]
                return self._points([*scored, *refused]), np.array([*costs, *[max(costs)] * len(refused)])
        return None

    def _is_usable(self, trial: FrozenTrial) -> bool:
        return self._space.is_complete(trial.params) and self._cube.contains({**self._fill, **trial.params})

    def _points(self, trials: Sequence[FrozenTrial]) -> Vector:
        """The points of trials; a parameter that does not exist is in the middle of its range."""
        rows = [self._cube.encode({**self._fill, **trial.params}) for trial in trials if self._is_usable(trial)]
        return np.array(rows, dtype=np.float64).reshape(-1, len(self._choices))

    def _features(self, points: Vector) -> Vector:
        """Columns that the trees split by: [N, columns]."""
        exists = self._existing(points)
        columns: list[Vector] = []
        for at, choices in enumerate(self._choices):
            if choices:
                chosen = np.minimum((points[:, at] * choices).astype(int), choices - 1)
                columns.append((chosen[:, None] == np.arange(choices)) & exists[:, at, None])
            else:
                columns.append(np.where(exists[:, at], points[:, at], ABSENT)[:, None])
        return np.concatenate(columns, axis=1, dtype=np.float64)

    def _existing(self, points: Vector) -> NDArray[np.bool_]:
        """True for the coordinates of parameters that exist, by the categories alone: [N, coordinates]."""
        exists = np.ones(points.shape, dtype=bool)
        if self._space.conditional:
            for row, point in enumerate(points):
                params = self._cube.decode(point)
                chosen = tuple(params[name] for name in self._categories)
                if chosen not in self._active:
                    active = set(self._space.active(params))
                    self._active[chosen] = np.array([name in active for name in self._cube.free])
                exists[row] = self._active[chosen]
        return exists

    def _identity(self, point: Vector) -> bytes:
        """The same for points that stand for the same params."""
        return self._features(self._cube.encode(self._cube.decode(point))[None]).tobytes()

    def _best_candidate(
        self, forest: Forest, points: Vector, proposed: Collection[bytes], draws: np.random.Generator
    ) -> Vector | None:
        """The candidate of largest log EI that is new: random points, and local searches from the best points so far.

        None where all candidates have been proposed before.
        """
        found = [draws.random((RANDOM_POINTS, len(self._choices)))]
        starts = points[np.argsort(-forest.improvement(self._features(points)), kind="stable")[:STARTS]]
        found += [self._climbed(forest, start, draws) for start in starts]
        candidates = np.concatenate(found)
        for at in np.argsort(-forest.improvement(self._features(candidates)), kind="stable"):
            best: Vector = candidates[at]
            if self._identity(best) not in proposed:
                return best
        return None

    def _climbed(self, forest: Forest, start: Vector, draws: np.random.Generator) -> Vector:
        """The neighbours that a local search passes: each time it moves to the best one, while that is an improvement.

        A neighbour differs in one coordinate: a number by a normal step, a category by another choice.
        """
        here, passed = start, []
        reached = float(forest.improvement(self._features(start[None]))[0])
        for _ in range(STEPS):
            neighbours = self._neighbours(here, draws)
            improvements = forest.improvement(self._features(neighbours))
            passed.append(neighbours)
            best = int(np.argmax(improvements))
            if improvements[best] <= reached:
                break
            here, reached = neighbours[best], float(improvements[best])
        return np.concatenate(passed)

    def _neighbours(self, point: Vector, draws: np.random.Generator) -> Vector:
        neighbours = np.repeat(point[None], len(point), axis=0)
        for at, choices in enumerate(self._choices):
            if choices:
                other = (int(point[at] * choices) + int(draws.integers(1, choices))) % choices
                neighbours[at, at] = (other + 0.5) / choices
            else:
                neighbours[at, at] = np.clip(draws.normal(point[at], SPREAD), 0.0, 1.0)
        return neighbours


class Forest:
    """A random forest of logarithms of costs, with the mean and the variance of its trees.

    Args:
        features: [N, columns].
        costs: [N], their logarithms.
    """

    def __init__(self, features: Vector, costs: Vector, *, trees: int, seed: int) -> None:
        self._model = RandomForestRegressor(n_estimators=trees, random_state=seed).fit(features, costs)
        self._best = float(costs.min())

    def improvement(self, features: Vector) -> Vector:
        """The log EI of candidates [N, columns]."""
        rows = features.astype(np.float32)  # as the trees compare
        trees = [(each.tree_, each.tree_.apply(rows)) for each in self._model.estimators_]
        means = np.stack([tree.value[leaves, 0, 0] for tree, leaves in trees])
        spreads = np.stack([tree.impurity[leaves] for tree, leaves in trees])
        # The law of total variance: within the leaves, and between the trees.
        return log_expected_improvement(means.mean(0), spreads.mean(0) + means.var(0), self._best)


def values_by_items(trial: FrozenTrial) -> dict[float, float]:
    """The values of a finished trial by the number of items that they are of; all items are infinity."""
    rungs = trial.user_attrs.get(RUNGS) or {}
    found = {float(items): float(value) for items, value in rungs.items()}
    if trial.value is not None and (trial.state == TrialState.COMPLETE or not rungs):
        found[math.inf] = trial.value
    return {items: value for items, value in found.items() if math.isfinite(value)}
