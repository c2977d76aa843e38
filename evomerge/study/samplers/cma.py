"""CMA-ES whose state is a function of the results in the study and of nothing else.

pycma does the arithmetic (N. Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv:1604.00772). What is added here:

* **Nothing is stored.** The state is rebuilt by telling the study's finished trials again, in the order in which they
  were told. A running sampler and a resumed one execute the same code, hence their states agree bit for bit.
* **Asynchronous.** A proposal is drawn from the distribution as it is when a worker becomes free, and every finished
  trial is told, whatever distribution it was drawn from. There are no generations to wait for, and no evaluation is
  lost to a generation that has passed: the `popsize` next results form the next population.
* **Keyed randomness.** Each draw has its own generator, keyed by the seed and the ordinal of the proposal, so that it
  does not matter what was drawn before, or by whom, or in which process.

Not covered: categorical parameters, conditional spaces, several objectives, restarts.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.pruners import HyperbandPruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtri

from evomerge.errors import InvalidInput
from evomerge.seeding import derive
from evomerge.study.attributes import TELL
from evomerge.study.samplers import settings
from evomerge.study.samplers.keyed import KeyedSampler
from evomerge.study.samplers.space import SamplerSpace
from evomerge.study.samplers.unit_cube import UnitCube

with warnings.catch_warnings():
    # pycma says at import that it cannot plot without matplotlib; nobody here asks it to.
    warnings.simplefilter("ignore", UserWarning)
    import cma

__all__ = ["CmaSampler", "build", "default_popsize"]

# What a draw is for: the first part of its key.
_PROPOSAL, _POPULATION = 0, 1

# The largest standard deviation never falls below this share of the box. Without it a long search on a plateau shrinks
# until floating point ends; a step that is smaller changes no merge.
_SMALLEST_STEP = 1e-6


def default_popsize(dimensions: int, workers: int = 1) -> int:
    """The tutorial's population (eq. 48), but at least one member per worker.

    With more workers than members, a proposal is older than a generation when its result arrives.
    """
    return max(4 + math.floor(3 * math.log(max(dimensions, 1))), workers)


def build(given: Mapping[str, Any], *, seed: int, space: SamplerSpace, workers: int) -> CmaSampler:
    """The sampler from its settings `sigma0` and `popsize`, both optional."""
    settings.only("cma", given, ("sigma0", "popsize"))
    popsize = settings.integer(
        given, "popsize", default_popsize(len(UnitCube(space.distributions).free), workers), low=3
    )
    return CmaSampler(space, seed=seed, sigma0=settings.number(given, "sigma0", 0.2, low=0.0), popsize=popsize)


class CmaSampler(KeyedSampler):
    """Covariance matrix adaptation over the unit cube, starting at the centre of the space.

    COMPLETE trials are told with their value and PRUNED ones with theirs (the last one reported), if it is finite and
    their params lie in the space. All others are ignored, FAILed ones among them: they are proposals that did not
    happen. Seeds that were enqueued are learned from like any other trial.

    The order in which trials are told is that of the user attribute `evomerge:tell`; trials without it come first, in
    the order of their completion.

    Args:
        space: what is searched; numbers only (floats, also logarithmic and stepped, and integers).
        seed: same seed, same results: same proposals.
        sigma0: initial standard deviation, as a share of each parameter's range.
        popsize: number of results that make one update of the distribution. Fix it when a study is created: with
            another value the same results give another state.

    Raises:
        InvalidInput: the space is categorical, conditional or a single point, or a number is out of its range.
    """

    def __init__(self, space: SamplerSpace, *, seed: int, sigma0: float = 0.2, popsize: int | None = None) -> None:
        _refuse_unsuitable(space)
        super().__init__(space, seed=seed)
        self._cube = UnitCube(space.distributions)
        dimensions = len(self._cube.free)
        if dimensions == 0:
            raise InvalidInput("the search space has nothing to search: every parameter has a single value")
        if popsize is None:
            popsize = default_popsize(dimensions)
        if popsize < 3:  # pycma's limit
            raise InvalidInput(f"popsize must be at least 3, but got {popsize!r}")
        if not (math.isfinite(sigma0) and sigma0 > 0):
            raise InvalidInput(f"sigma0 must be a finite number above 0, but got {sigma0!r}")
        self._sigma0 = float(sigma0)
        self._popsize = int(popsize)
        self._lock = threading.Lock()  # Study.optimize(n_jobs=…) asks from several threads
        self._forget()

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
        """How often the distribution has been updated."""
        return len(self._told) // self._popsize

    def mean(self, study: Study) -> dict[str, Any]:
        """The params at the mean of the distribution, after all that the study knows.

        In more than a few dimensions they are usually better than the best trial, and nobody has tried them.
        """
        with self._lock:
            self._catch_up(study, study.get_trials(deepcopy=False))
            return self._cube.decode(self._strategy.result.xfavorite[: len(self._cube.free)])

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        if isinstance(study.pruner, HyperbandPruner):
            raise InvalidInput("the cma sampler cannot learn from Hyperband's brackets; use another pruner, or tpe")
        if len(study.directions) > 1:
            raise InvalidInput("the cma sampler optimises one objective; weigh them into one, or use nsgaii")
        super().before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._cube.free)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        with self._lock:
            # As they were when the proposal was begun: Optuna's own samplers read them once per trial, too.
            self._catch_up(study, study._get_trials(deepcopy=False, use_cache=True))
            self._normal.key(_PROPOSAL, self.ordinal(study, trial))
            point = self._ask(1)[0]
        params = self._cube.decode(point[: len(self._cube.free)])
        return {name: params[name] for name in search_space}

    def _forget(self) -> None:
        """Go back to the state before the first result."""
        self._seen: list[int] = []
        self._told: list[int] = []
        self._population: list[tuple[NDArray[np.float64], float]] = []
        self._normal = KeyedNormal(derive(self._seed, "cma"))
        self._strategy = self._new_strategy()

    def _new_strategy(self) -> Any:
        centre = self._cube.encode(self._space.centre)
        # pycma does not support one dimension (its issues 86 and 302): a second one is added that means nothing.
        spare = [0.5] if len(centre) == 1 else []
        return cma.CMAEvolutionStrategy(
            [*centre, *spare],
            self._sigma0,
            {
                "bounds": [0, 1],
                "popsize": self._popsize,
                "minstd": [*_smallest_stds(self._cube.bins, self._popsize), *np.zeros(len(spare))],
                # These two put points into the next population that must be told as its own: impossible here, where a
                # population is whatever has finished. pycma uses them below 6 members, and above 300 dimensions.
                "CMA_mirrors": 0,
                "AdaptSigma": cma.sigma_adaptation.CMAAdaptSigmaCSA,
                "randn": self._normal,
                "seed": np.nan,  # otherwise pycma seeds numpy's global generator
                "verbose": -9,
                "verb_log": 0,  # otherwise it writes ./outcmaes
                "signals_filename": "",  # otherwise it evaluates ./cma_signals.in
            },
        )

    def _catch_up(self, study: Study, known: Sequence[FrozenTrial]) -> None:
        """Learn from the trials that have finished since the last time."""
        trials = _in_tell_order(known)
        if [trial.number for trial in trials[: len(self._seen)]] != self._seen:
            self._forget()  # another study, or a trial was inserted before one that we have learned from
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        for trial in trials[len(self._seen) :]:
            self._seen.append(trial.number)
            if trial.value is not None and math.isfinite(trial.value) and self._cube.contains(trial.params):
                self._learn(trial.number, self._cube.encode(trial.params), sign * trial.value)

    def _learn(self, number: int, point: NDArray[np.float64], loss: float) -> None:
        self._told.append(number)
        self._population.append((point, loss))
        if len(self._population) < self._popsize:
            return
        self._normal.key(_POPULATION, self.generation)
        drawn = self._ask(self._popsize)  # pycma wants an ask before each tell; gives the spare coordinate its values
        points = [
            np.append(point, spare[len(point) :]) for (point, _), spare in zip(self._population, drawn, strict=True)
        ]
        self._strategy.tell(points, [loss for _, loss in self._population])
        self._population.clear()
        largest = float(np.max(self._strategy.stds))
        if largest < _SMALLEST_STEP:
            self._strategy.sigma *= _SMALLEST_STEP / largest

    def _ask(self, n: int) -> list[NDArray[np.float64]]:
        points: list[NDArray[np.float64]] = self._strategy.ask(n)
        # A live strategy would recognise the points that it has drawn itself and treat them unlike those of a replay.
        self._strategy.sent_solutions.clear()
        return points


class KeyedNormal:
    """Standard normal draws from a generator that is named by a key before each use."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.key(0, 0)

    def key(self, *key: int) -> None:
        self._generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, *key])))

    def __call__(self, *shape: int) -> NDArray[np.float64]:
        return self._generator.standard_normal(shape)


def _refuse_unsuitable(space: SamplerSpace) -> None:
    categorical = [name for name, d in space.distributions.items() if isinstance(d, CategoricalDistribution)]
    if categorical:
        raise InvalidInput(
            f"the cma sampler searches numbers, but {categorical[0]!r} is categorical "
            f"({len(categorical)} such parameters); use the sampler tpe"
        )
    if space.conditional:
        raise InvalidInput("the cma sampler needs a space in which every parameter always exists; use the sampler tpe")


def _smallest_stds(bins: Sequence[int], popsize: int) -> NDArray[np.float64]:
    """Standard deviations below which a coordinate with a grid of values would be stuck at one of them.

    From the middle of a bin, a neighbour is drawn with the probability 1 / (N popsize) of CMA-ES with margin (Hamano et
    al. 2022, arXiv:2205.13482, section 4.1). Continuous coordinates have no limit.
    """
    distance = -ndtri(0.5 / (len(bins) * popsize))  # in standard deviations, for both sides together
    return np.array([0.5 / n / distance if n else 0.0 for n in bins])


def _in_tell_order(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    learned_from = (TrialState.COMPLETE, TrialState.PRUNED)
    return sorted((trial for trial in trials if trial.state in learned_from), key=_tell_position)


def _tell_position(trial: FrozenTrial) -> tuple[int, Any, int]:
    told = trial.user_attrs.get(TELL)
    if isinstance(told, int):
        return (1, told, trial.number)
    return (0, trial.datetime_complete or datetime.min, trial.number)
