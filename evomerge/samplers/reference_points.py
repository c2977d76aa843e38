"""CMA-ES for several objectives: one search per reference point, a known merge to be improved on every objective.

With many objectives nearly every result is Pareto-optimal, which gives little direction. The values of known merges,
which cost less than the search, give more. For each of them an `Evolution` maximises

    a(v) = mean_t min(v_t - b_t, 0) + rho * mean_t (v_t - b_t)

where b are the values of the reference point: how far v falls short of it, and where it does not, by how much it is
better. It is an achievement scalarising function (A. P. Wierzbicki, "The Use of Reference Objectives in Multiobjective
Optimization", 1980, doi:10.1007/978-3-642-48782-8_32) with the mean of the shortfalls in place of the largest one,
which has no direction where scores are coarse.

* Proposals alternate between the reference points that no result dominates yet; if all are dominated, between all.
* Every evolution learns from each result that it could have drawn, so that reference points near each other share
  results.
* A reference point that is itself a point of the space is searched from there, with small steps: better merges are
  usually close. The others begin at the centre.

The reference points are an attribute of the study. As with the sampler cma, the state is rebuilt from the study's
results in the order of telling, every draw is keyed by the ordinal of the proposal, and no worker waits for another.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from evomerge.errors import InvalidInput
from evomerge.evolution.cma_evolution import Evaluation, Evolution, EvolutionSettings
from evomerge.evolution.cma_strategy import default_popsize
from evomerge.evolution.unit_cube import UnitCube
from evomerge.forms import parse_json, reading
from evomerge.samplers import settings
from evomerge.samplers.base import ReplayingSampler, SamplerInputs, SamplerSpace
from evomerge.samplers.cma import SIGMA0, refuse_unsuitable
from evomerge.seeding import derive
from evomerge.storage.attributes import GOALS, Readable, Writable, read_text, write_text
from evomerge.storage.optuna_internals import cached_trials

__all__ = ["ReferencePoint", "ReferencePointSampler", "build", "read_reference_points", "write_reference_points"]

Values = NDArray[np.float64]

# rho: the weight of being better on average, beside falling short anywhere.
_GAIN = 0.1
# First steps from a reference point that is a point of the space, as a share of those from the centre.
_NEAR = 0.15


@dataclass(frozen=True)
class ReferencePoint:
    """A known merge that the search should dominate.

    Attributes:
        values: of each objective.
        params: its point in the search space, None if it has none.
    """

    values: tuple[float, ...]
    params: Mapping[str, Any] | None = None


def write_reference_points(target: Writable, points: Sequence[ReferencePoint]) -> None:
    """Store the reference points in a study, before its first proposal."""
    write_text(target, GOALS, json.dumps([asdict(point) for point in points]))


def read_reference_points(study: Readable) -> tuple[ReferencePoint, ...]:
    """The reference points of a study; none if nothing is stored."""
    text = read_text(study, GOALS)
    with reading("the goals of the study"):
        points = parse_json(text or "[]", tuple[ReferencePoint, ...])
        return tuple(ReferencePoint(tuple(each["values"]), each["params"]) for each in points)


def build(inputs: SamplerInputs) -> ReferencePointSampler:
    """Build the sampler from its settings, all of them optional: see `ReferencePointSettings`."""
    for name in settings.CmaSettings.model_fields:
        if name in inputs.settings and name not in settings.ReferencePointSettings.model_fields:
            raise InvalidInput(f"sampler setting {name!r} is one of cma with one objective; with several, leave it out")
    chosen = settings.read("cma", inputs.settings, settings.ReferencePointSettings)
    default = default_popsize(len(UnitCube(inputs.space.distributions).free), inputs.workers)
    return ReferencePointSampler(
        inputs.space,
        seed=inputs.seed,
        sigma0=chosen.sigma0,
        popsize=default if chosen.popsize is None else chosen.popsize,
        restarts=chosen.restarts,
    )


class ReferencePointSampler(ReplayingSampler):
    """Searches what is better than known merges on every objective.

    COMPLETE trials are learned from if their values are finite and their params are in the space.

    Args:
        space: what is searched; numbers only.
        seed: same seed, same results: same proposals.
        sigma0: initial standard deviation from the centre, as a share of each parameter's range.
        popsize: number of results that make one update of one reference point's distribution.
        restarts: see `CmaSampler`.

    Raises:
        InvalidInput: the space is categorical, conditional or a single point, or a setting is out of its range.
    """

    def __init__(
        self,
        space: SamplerSpace,
        *,
        seed: int,
        sigma0: float = SIGMA0,
        popsize: int | None = None,
        restarts: str = "ipop",
    ) -> None:
        refuse_unsuitable(space)
        super().__init__(space, seed=seed)
        self._cube = UnitCube(space.distributions)
        popsize = default_popsize(len(self._cube.free)) if popsize is None else popsize
        self._settings = EvolutionSettings(sigma0=sigma0, popsize=popsize, restarts=restarts)
        self._lock = threading.Lock()  # Study.optimize(n_jobs=…) asks from several threads
        self._study: Study | None = None

    @property
    def popsize(self) -> int:
        """Number of results that make one update, before restarts enlarge it."""
        return self._settings.popsize

    def dominated(self, study: Study) -> tuple[bool, ...]:
        """For each reference point, whether some result is at least as good on every objective and better on one."""
        with self._lock:
            self._learn_all(study, study.get_trials(deepcopy=False))
            return tuple(search.dominated for search in self._searches)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._cube.free)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        with self._lock:
            # As they were when the proposal was begun: Optuna's own samplers read them once per trial, too.
            self._learn_all(study, cached_trials(study))
            ordinal = self.ordinal(study, trial)
            open_ones = [search for search in self._searches if not search.dominated] or self._searches
            point = open_ones[ordinal % len(open_ones)].evolution.propose(ordinal)
        params = self._cube.decode(point)
        return {name: params[name] for name in search_space}

    def _learn_all(self, study: Study, known: Sequence[FrozenTrial]) -> None:
        if study is not self._study:
            self._study, self._seen, self._memory = study, [], None
            self._signs = np.array([1.0 if each == StudyDirection.MAXIMIZE else -1.0 for each in study.directions])
            self._points = read_reference_points(study)
            self._reset()
        self._replay_new_results(study, known)

    def _reset(self) -> None:
        if not self._points:
            raise InvalidInput(
                "with several objectives the sampler cma searches for what is better than known merges on all of them, "
                "and the study has none; name baselines, or use nsgaii, nsgaiii, tpe or gp"
            )
        self._searches = [self._search(number, point) for number, point in enumerate(self._points)]

    def _search(self, number: int, reference: ReferencePoint) -> _Search:
        near = reference.params is not None and self._cube.contains(reference.params)
        start = self._cube.encode(reference.params if near and reference.params is not None else self._space.centre)
        first = self._settings.sigma0 * (_NEAR if near else 1.0)
        evolution = Evolution(
            start,
            self._cube.bins,
            derive(self._seed, "goals", number),
            EvolutionSettings(sigma0=first, popsize=self.popsize, restarts=self._settings.restarts),
        )
        return _Search(evolution, self._signs * np.array(reference.values))

    def _learn(self, study: Study, trial: FrozenTrial, ordinal: int) -> None:
        values = [] if trial.values is None else trial.values
        if len(values) != len(self._signs) or not all(map(math.isfinite, values)):
            return
        point = self._cube.find(trial.params)
        if point is not None:
            for search in self._searches:
                search.learn(ordinal, point, self._signs * np.array(values))


class _Search:
    """The search for points that dominate one reference point. Larger values are better."""

    def __init__(self, evolution: Evolution, reference: Values) -> None:
        self.evolution = evolution
        self.dominated = False
        self._reference = reference

    def learn(self, ordinal: int, point: NDArray[np.float64], values: Values) -> None:
        better = values - self._reference
        self.dominated = self.dominated or bool((better >= 0).all() and (better > 0).any())
        if self.evolution.strategy.is_plausible_draw(point):
            achieved = float(np.minimum(better, 0.0).mean() + _GAIN * better.mean())
            self.evolution.learn(Evaluation(ordinal=ordinal, point=point, loss=-achieved))
