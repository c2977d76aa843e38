"""CatCMA with margin whose state is a function of the results in the study and of nothing else.

Numbers have a Gaussian distribution, as in CMA-ES; each category has a probability, which is moved by a natural
gradient; a margin keeps every integer and every category within reach. The arithmetic is that of the package cmaes:

* R. Hamano et al., "CatCMA: Stochastic Optimization for Mixed-Category Problems", arXiv:2405.09962
* R. Hamano et al., "CatCMA with Margin: Stochastic Optimization for Continuous, Integer, and Categorical Variables",
  arXiv:2504.07884

As in the sampler cma, nothing is stored (the finished trials are told again, in the order in which they were told), no
worker waits for another one, and every draw is keyed by what it is for. What is added here is the conditional space: a
trial lacks the parameters of the methods that it did not choose.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from cmaes import CatCMAwM
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from evomerge.errors import InvalidInput
from evomerge.evolution.unit_cube import UnitCube
from evomerge.samplers import settings
from evomerge.samplers.base import SEEDS, ReplayingSampler, SamplerInputs, SamplerSpace, refuse_hyperband
from evomerge.samplers.infeasible import excess_of
from evomerge.seeding import derive
from evomerge.storage.optuna_internals import cached_trials

__all__ = ["CatCmaSampler", "build"]

Vector = NDArray[np.float64]

# Below this number of results no update has more than one parent, and the learning rates of the paper are undefined.
_SMALLEST_POPULATION = 4

# With more values than this, a margin around each one of them is less than the noise, and the library pads every
# integer to the longest list of values.
_MOST_STEPS = 1000

# Standard deviation, as a share of the box, below which the distribution no longer shrinks; and the largest ratio of
# two variances. A long search on a plateau would otherwise end where floating point does.
_SMALLEST_STEP = 1e-6
_LARGEST_CONDITION = 1e14


def build(inputs: SamplerInputs) -> CatCmaSampler:
    """Build the sampler from its settings, all of them optional: see `CatCmaSettings`."""
    chosen = settings.read("catcma", inputs.settings, settings.CatCmaSettings)
    default = max(_default_popsize(len(UnitCube(inputs.space.distributions).free)), inputs.workers)
    return CatCmaSampler(
        inputs.space,
        seed=inputs.seed,
        sigma0=chosen.sigma0,
        popsize=default if chosen.popsize is None else chosen.popsize,
    )


def _default_popsize(dimensions: int) -> int:
    return 4 + math.floor(3 * math.log(max(dimensions, 1)))  # as CMA-ES (Hansen, arXiv:1604.00772, eq. 48)


class CatCmaSampler(ReplayingSampler):
    """CatCMA with margin over floats, integers, steps and categories, conditional ones included.

    It starts at the centre of the space: the Gaussian at the centre's numbers (and in the middle of the range of those
    that the centre does not have), each category with the same probability for all its values.

    COMPLETE trials are told with their value and PRUNED ones with theirs, if it is finite and their params are complete
    and in the space. Proposals that were refused without being scored rank behind them, by how far they are out of
    bounds. All others are ignored. In a conditional space, parameters that did not exist in a trial
    do not learn from it: see `_Optimizer.complete`.

    Args:
        space: what is searched.
        seed: same seed, same results: same proposals.
        sigma0: initial standard deviation of the numbers, as a share of each one's range.
        popsize: number of results that make one update of the distribution. Fix it when a study is created: with
            another value the same results give another state.

    Raises:
        InvalidInput: the space is a single point, or a number is out of its range.
    """

    def __init__(self, space: SamplerSpace, *, seed: int, sigma0: float = 0.2, popsize: int | None = None) -> None:
        super().__init__(space, seed=seed)
        self._coordinates = _Coordinates(space)
        if not self._coordinates.cube.free:
            raise InvalidInput("the search space has nothing to search: every parameter has a single value")
        if popsize is None:
            popsize = _default_popsize(len(self._coordinates.cube.free))
        if popsize < _SMALLEST_POPULATION:
            raise InvalidInput(f"popsize must be at least {_SMALLEST_POPULATION}, but got {popsize!r}")
        if not (math.isfinite(sigma0) and sigma0 > 0):
            raise InvalidInput(f"sigma0 must be a finite number above 0, but got {sigma0!r}")
        self._sigma0 = float(sigma0)
        self._popsize = int(popsize)
        self._lock = threading.Lock()  # Study.optimize(n_jobs=…) asks from several threads
        self._reset()

    @property
    def popsize(self) -> int:
        """Number of results that make one update."""
        return self._popsize

    @property
    def told(self) -> tuple[int, ...]:
        """Numbers of the trials learned from, in order. The last `len(told) % popsize` wait for their population."""
        return tuple(self._told)

    @property
    def generation(self) -> int:
        """Number of updates of the distribution."""
        return len(self._told) // self._popsize

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        refuse_hyperband(study, "catcma")
        if len(study.directions) > 1:
            raise InvalidInput("the catcma sampler optimises one objective; weigh them into one, or use nsgaii")
        super().before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._coordinates.cube.free)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        with self._lock:
            # As they were when the proposal was begun: Optuna's own samplers read them once per trial, too.
            self._replay_new_results(study, cached_trials(study))
            self._key("proposal", self.ordinal(study, trial))
            params = self._coordinates.decode(self._optimizer.ask())
        # Those of other methods are among them. Optuna takes the ones that are asked for, and stores no others.
        return {name: params[name] for name in search_space}

    def _reset(self) -> None:
        self._told: list[int] = []
        self._population: list[tuple[Mapping[str, Any], tuple[bool, float]]] = []  # of each whether it was refused
        self._optimizer = self._coordinates.optimizer(self._sigma0, self._popsize)

    def _key(self, *purpose: int | str) -> None:
        self._optimizer.reseed_rng(derive(self._seed, "catcma", *purpose) % SEEDS)

    def _learn(self, study: Study, trial: FrozenTrial, ordinal: int) -> None:
        if not self._usable(trial.params):
            return
        excess = excess_of(trial)
        if excess is not None:
            self._add(trial.number, trial.params, (True, excess))
        elif trial.value is not None and math.isfinite(trial.value):
            loss = -trial.value if study.direction == StudyDirection.MAXIMIZE else trial.value
            self._add(trial.number, trial.params, (False, loss))

    def _usable(self, params: Mapping[str, Any]) -> bool:
        return self._space.is_complete(params) and self._coordinates.contain(params)

    def _add(self, number: int, params: Mapping[str, Any], loss: tuple[bool, float]) -> None:
        self._told.append(number)
        self._population.append((params, loss))
        if len(self._population) < self._popsize:
            return
        generation = self.generation
        ranked = sorted(self._population, key=lambda member: member[1])  # ties in the order in which they were told
        solutions = []
        for rank, (params, _) in enumerate(ranked):
            self._key("population", generation, rank)
            # The rank in place of the value: it is all that counts for points inside the box, and cannot overflow.
            solutions.append((self._optimizer.complete(*self._coordinates.encode(params)), float(rank)))
        self._optimizer.tell(solutions)
        self._population.clear()


class _Coordinates:
    """Translates between params and the continuous, integer and categorical variables of the library.

    All numbers are coordinates of the unit cube; the values of integers and steps are the middles of their bins. What
    has two values only is a category, as the library recommends.
    """

    def __init__(self, space: SamplerSpace) -> None:
        self.cube = UnitCube(space.distributions)
        self._centre = space.centre
        kinds = {name: _kind(distribution, bins) for (name, distribution), bins in self._with_bins()}
        self._continuous = [name for name, kind in kinds.items() if kind == "continuous"]
        self._integers = [name for name, kind in kinds.items() if kind == "integer"]
        self._categories = [name for name, kind in kinds.items() if kind == "category"]
        # One per parameter: a conditional trial has only some of them.
        self._axes = {name: UnitCube({name: distribution}) for name, distribution in self.cube.free.items()}
        self._values = {
            name: _values(self._axes[name], distribution, bins)
            for (name, distribution), bins in self._with_bins()
            if kinds[name] != "continuous"
        }

    def optimizer(self, sigma0: float, popsize: int) -> _Optimizer:
        numbers = self._continuous + self._integers
        mean = [self._position(name, self._centre[name]) if name in self._centre else 0.5 for name in numbers]
        return _Optimizer(
            x_space=[[0.0, 1.0]] * len(self._continuous) or None,
            z_space=[self._values[name] for name in self._integers] or None,
            c_space=[len(self._values[name]) for name in self._categories] or None,
            population_size=popsize,
            mean=np.array(mean),
            sigma=sigma0,
            cov=np.eye(len(numbers)),
        )

    def contain(self, params: Mapping[str, Any]) -> bool:
        """Whether all given params are in the space."""
        return all(axis.contains(params) for name, axis in self._axes.items() if name in params)

    def encode(self, params: Mapping[str, Any]) -> tuple[Vector, list[int | None]]:
        """The coordinates of the numbers, NaN where there is none, and the indices of the categories."""
        numbers = [
            self._position(name, params[name]) if name in params else math.nan
            for name in self._continuous + self._integers
        ]
        categories = [
            self._values[name].index(self._position(name, params[name])) if name in params else None
            for name in self._categories
        ]
        return np.array(numbers), categories

    def decode(self, solution: CatCMAwM.Solution) -> dict[str, Any]:
        """The params of a solution, as plain Python values, as if all parameters existed."""
        point: dict[str, float] = {}
        if solution.x is not None:
            point |= dict(zip(self._continuous, solution.x, strict=True))
        if solution.z is not None:
            point |= dict(zip(self._integers, solution.z, strict=True))
        if solution.c is not None:
            chosen = np.argmax(solution.c, axis=1)
            point |= {name: self._values[name][i] for name, i in zip(self._categories, chosen, strict=True)}
        return self.cube.decode(np.array([point[name] for name in self.cube.free]))

    def _with_bins(self) -> zip[tuple[tuple[str, BaseDistribution], int]]:
        return zip(self.cube.free.items(), self.cube.bins, strict=True)

    def _position(self, name: str, value: Any) -> float:
        return float(self._axes[name].encode({name: value})[0])


def _kind(distribution: BaseDistribution, bins: int) -> str:
    if isinstance(distribution, CategoricalDistribution) or bins == 2:
        return "category"
    return "integer" if 0 < bins <= _MOST_STEPS else "continuous"


def _values(axis: UnitCube, distribution: BaseDistribution, bins: int) -> list[float]:
    """The coordinates of all values, in ascending order."""
    (name,) = axis.free
    if isinstance(distribution, IntDistribution) and distribution.log:  # its bins become narrower
        return [float(axis.encode({name: value})[0]) for value in range(distribution.low, distribution.high + 1)]
    return [(i + 0.5) / bins for i in range(bins)]


class _Optimizer(CatCMAwM):  # type: ignore[misc]
    """The library's optimizer, told of points that it need not have drawn.

    The library takes from each told solution the Gaussian vector that it was drawn as. A study holds the params only,
    hence that vector is made from them: clipped to the box, integers in the middle of their bins. There is no public
    way to the distribution, which this needs, so that protected attributes are read, here and nowhere else.
    """

    _C: Vector
    _Delta: float
    _pc: Vector
    _sigma: float

    def complete(self, numbers: Vector, categories: Sequence[int | None]) -> CatCMAwM.Solution:
        """The solution to tell for params some of which may not have existed (NaN, None).

        Absent numbers are drawn from the distribution as it is: selection then has no effect on them in expectation, so
        that neither the mean nor the spread of a method's parameters moves while other methods are tried. The mean in
        their place would shrink the spread with every such trial: quicker on the method that is chosen at first, but
        the parameters of the others would be frozen before anyone has tried them. Absent categories are told as their
        probabilities, which is a gradient of zero: exactly no change.
        """
        vector = self._shortened(self._filled(numbers)) if self._use_gaussian else None
        return CatCMAwM.Solution(None, None, self._rows(categories) if self._use_categorical else None, vector)

    def tell(self, solutions: list[tuple[CatCMAwM.Solution, float]]) -> None:
        super().tell(solutions)
        if self._use_gaussian:
            self._settle()

    def _filled(self, numbers: Vector) -> Vector:
        # Clipped as the values of a trial are. Not given the numbers that are there: along correlations that came about
        # by chance, parameters that nobody uses would follow the others.
        drawn = np.clip(self._sample_from_gaussian(), 0.0, 1.0)
        filled: Vector = np.where(np.isnan(numbers), drawn, numbers)
        return filled

    def _shortened(self, vector: Vector) -> Vector:
        """The point moved towards the mean where it is further away than draws are.

        Seeds that were enqueued, and results that come long after they were asked for, would otherwise blow up the step
        size. The limit is pycma's (its `repair_genotype`), in Mahalanobis distance.
        """
        axes, lengths = self._eigen_decomposition()
        step = (vector - self._mean) / (self._sigma * self._A)
        distance = float(np.linalg.norm(axes.T @ step / lengths))
        limit = math.sqrt(self._Nmi) + 2 * self._Nmi / (self._Nmi + 2)
        shortened: Vector = self._mean + (vector - self._mean) * (limit / max(distance, limit))
        return shortened

    def _rows(self, categories: Sequence[int | None]) -> Vector:
        rows: Vector = self._q.copy()
        for i, category in enumerate(categories):
            if category is not None:
                rows[i] = 0.0
                rows[i, category] = 1.0
        return rows

    def _update_categorical(self, chosen: Vector) -> None:
        # The library divides by the length of the gradient, which is zero if no category existed in any parent.
        if np.array_equal(chosen[: self._mu], np.broadcast_to(self._q, chosen[: self._mu].shape)):
            return
        super()._update_categorical(chosen)
        # With few categories the rate at which the gradient is averaged may otherwise exceed 1 on a plateau: the root
        # of a negative number next.
        self._Delta = max(self._Delta, self._delta_init / math.sqrt(self._param_sum))

    def _settle(self) -> None:
        """Write the same distribution with a largest axis of length 1, and keep it within what floating point holds."""
        _, lengths = self._eigen_decomposition()
        largest = float(np.max(lengths))
        self._C = self._C / largest**2 + np.eye(self._Nmi) / _LARGEST_CONDITION
        self._pc = self._pc / largest
        self._sigma = max(self._sigma * largest, _SMALLEST_STEP)
        self._B, self._D = None, None
