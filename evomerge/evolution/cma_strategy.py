"""One run of CMA-ES whose only randomness is keyed: pycma, set up so that a replay gives the same bits.

Equations are those of N. Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv:1604.00772.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

with warnings.catch_warnings():
    # pycma warns at import that it cannot plot without matplotlib, which is not needed here.
    warnings.simplefilter("ignore", UserWarning)
    import cma

__all__ = ["KeyedNormal", "Strategy", "default_popsize"]

Point = NDArray[np.float64]

# The largest standard deviation never falls below this share of the box. Without it a long search on a plateau shrinks
# until floating point ends; a step that is smaller changes no merge.
_SMALLEST_STEP: Final = 1e-6

# A search whose largest standard deviation is below this share of the box has arrived: only then does a signal of
# pycma about equal fitness values count.
_ARRIVED: Final = 1e-4

# Signals of `stop()` that come from the values alone. A score that counts right answers is flat over wide regions, and
# flatness is then no sign of convergence.
_COARSE: Final = frozenset({"flat fitness", "tolflatfitness", "tolfun", "tolfunhist", "tolfunrel", "tolstagnation"})

# Of the clock, the caller and the budget: they say nothing about the search.
_FOREIGN: Final = frozenset({"callback", "ftarget", "maxfevals", "timeout"})

# Damping of the step size, as a share of the tutorial's d_sigma (eq. 55), times the dimensions; never below 0.3, which
# is close to optimal on a sphere (pycma, on its option CSA_dampfac). The tutorial's value is for budgets that are many
# times larger than the dimensions: a few hundred results are some thirty updates, within which the steps have to become
# shorter.
_DAMPED_DIMENSIONS: Final = 8.0

# Steps below this share of the length at which pycma shortens them are measured together, whose last bits differ.
_CLEARLY_SHORT: Final = 0.99


def default_popsize(dimensions: int, workers: int = 1, *, synchronous: bool = False) -> int:
    """The tutorial's population, but at least one member per two workers, or per worker if all wait for all.

    With more workers than members, a proposal is older than a generation when its result arrives; with larger
    populations there are too few updates. In benchmarks/search.py half the workers was best.
    """
    least = workers if synchronous else math.ceil(workers / 2)
    return max(4 + math.floor(3 * math.log(max(dimensions, 1))), least)  # lambda (eq. 48)


class KeyedNormal:
    """Standard normal draws from a generator that is named by a key before each use."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.key(0, 0)

    def key(self, *key: int) -> None:
        self._generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, *key])))

    def __call__(self, *shape: int) -> NDArray[np.float64]:
        return self._generator.standard_normal(shape)

    def uniform(self, size: int) -> Point:
        """A point of the unit cube."""
        return self._generator.uniform(size=size)


class Strategy:
    """A distribution over the unit cube that learns from populations of results, from its start to convergence.

    Args:
        start: the first mean.
        sigma0: initial standard deviation in every coordinate.
        popsize: results per update.
        bins: for each coordinate the number of its values, 0 where it is continuous.
        normal: the draws; the caller names them before each `draw` and `tell`.
    """

    def __init__(self, start: Point, sigma0: float, popsize: int, *, bins: Sequence[int], normal: KeyedNormal) -> None:
        self.popsize = popsize
        self._size = len(start)
        # pycma does not support one dimension (its issues 86 and 302): a second one is added that means nothing.
        spare = [0.5] if self._size == 1 else []
        self._strategy = cma.CMAEvolutionStrategy(
            [*start, *spare],
            sigma0,
            {
                "bounds": [0, 1],
                "BoundaryHandler": _UnitBox,
                "popsize": popsize,
                "minstd": [*_smallest_stds(bins, popsize), *np.zeros(len(spare))],
                # These two put points into the next population that must be told as its own: impossible here, where a
                # population is whatever has finished. pycma uses them below 6 members, and above 300 dimensions.
                "CMA_mirrors": 0,
                "AdaptSigma": cma.sigma_adaptation.CMAAdaptSigmaCSA,
                "CSA_dampfac": min(1.0, max(0.3, _DAMPED_DIMENSIONS / self._size)),
                "tolx": _ARRIVED,
                "randn": normal,
                "seed": np.nan,  # otherwise pycma seeds numpy's global generator
                "verbose": -9,
                "verb_log": 0,  # otherwise it writes ./outcmaes
                "signals_filename": "",  # otherwise it evaluates ./cma_signals.in
            },
        )
        self._archive = self._strategy.sent_solutions = _Genotypes()
        dimensions = self._strategy.N
        self._longest = dimensions**0.5 + 2 * dimensions / (dimensions + 2)  # as in its `repair_genotype`

    @property
    def mean(self) -> Point:
        """The mean of the distribution."""
        return np.asarray(self._strategy.result.xfavorite, dtype=np.float64)[: self._size]

    @property
    def arrived(self) -> bool:
        """Whether pycma would stop, for a reason in the search and not in the coarseness of the values."""
        signals = set(self._strategy.stop()) - _FOREIGN
        return bool(signals - _COARSE) or (bool(signals) and float(np.max(self._strategy.stds)) < _ARRIVED)

    def draw(self) -> Point:
        """A point from the distribution."""
        drawn: Point = self._strategy.ask(1)[0]  # x ~ m + sigma N(0, C) (eqs. 38 to 40)
        return drawn[: self._size]

    def tell(self, points: Sequence[Point], losses: Sequence[float]) -> None:
        """Learn from a population, wherever its points come from."""
        whole = np.array(points)
        # pycma wants an ask before each tell. The first one starts its clock; others need no more than to sample.
        if self._size < self._strategy.N or not self._strategy.countiter:
            drawn = np.array(self._strategy.ask(len(points)))
            whole = np.hstack([whole, drawn[:, self._size :]])
        else:
            self._strategy.ask_geno(1)
        self._archive.expect(self._genotypes(whole))
        self._strategy.tell(list(whole), list(losses))  # mean, step size and covariance (eqs. 41 to 47)
        largest = float(np.max(self._strategy.stds))
        if largest < _SMALLEST_STEP:
            self._strategy.sigma *= _SMALLEST_STEP / largest

    def is_plausible_draw(self, point: Point) -> bool:
        """Whether the point is as near as draws of this distribution are: within twice the usual length of a step."""
        step = np.append(point, self._strategy.mean[self._size :])
        genotype = self._strategy.gp.geno(step, from_bounds=self._strategy.boundary_handler.inverse)
        length = float(self._strategy.mahalanobis_norm(genotype - self._strategy.mean))
        return length <= 2 * math.sqrt(len(step))

    def _genotypes(self, points: Point) -> list[Point]:
        """The points without bounds and with shortened steps, as pycma would make them one by one.

        Nothing where it would look at them in other coordinates, which it does of very long and thin distributions.
        """
        strategy = self._strategy
        if not strategy.gp.isidentity:
            return []
        genotypes = [strategy.boundary_handler.inverse(point) for point in points]
        steps = (np.array(genotypes) - strategy.mean) / strategy.sigma_vec.scaling
        lengths = np.linalg.norm(steps @ strategy.sm.B / strategy.sm.D, axis=1) / strategy.sigma
        return [
            genotype if length < _CLEARLY_SHORT * self._longest else strategy.repair_genotype(genotype, True)
            for genotype, length in zip(genotypes, lengths, strict=True)
        ]


class _Genotypes:
    """The archive in which pycma finds the genotypes of the points that it is told, and none of those that it draws.

    A live strategy would recognise the points that it has drawn itself and treat them unlike those of a replay.
    """

    last_iteration = 0

    def __init__(self) -> None:
        self._expected: list[Point] = []

    def expect(self, genotypes: Sequence[Point]) -> None:
        """The genotypes of the next population, in its order; pycma makes them where there are none."""
        self._expected = list(genotypes)

    def __getitem__(self, point: Point) -> dict[str, Any]:
        if not self._expected:
            raise KeyError("no genotype is expected")
        return {"geno": self._expected.pop(0), "iteration": self.last_iteration}

    def get(self, point: Point) -> None:
        return None

    def pop(self, point: Point, default: None) -> None:
        return default

    def insert(self, *entry: Any, **attributes: Any) -> None:
        pass

    def truncate_to(self, length: int) -> None:
        pass


class _UnitBox(cma.BoundTransform):  # type: ignore[misc]
    """pycma's smooth bounds of the unit cube, whose inverse looks at single coordinates near the bounds only.

    Away from them it leaves coordinates as they are; looking at each takes a third of the time of an update.
    """

    def inverse(self, x: Point, copy_if_changed: bool = True) -> Point:
        point = np.array(x, dtype=np.float64)
        lower, upper, below, above = self._edges
        for i in np.flatnonzero(~((point >= lower + below) & (point < upper - above))):
            if not lower <= point[i] <= upper:
                raise ValueError("argument of inverse must be within the given bounds")
            if point[i] < lower + below:
                point[i] = (lower - below) + 2 * (below * (point[i] - lower)) ** 0.5
            else:
                point[i] = (upper + above) - 2 * (above * (upper - point[i])) ** 0.5
        return point

    @cached_property
    def _edges(self) -> tuple[Any, ...]:
        """Lower and upper bound of each coordinate, and the width of the curve beside each."""
        transformation = self.bounds_tf
        return tuple(getattr(transformation, name)[0] for name in ("_lb", "_ub", "_al", "_au"))


def _smallest_stds(bins: Sequence[int], popsize: int) -> Point:
    """Standard deviations below which a coordinate with a grid of values would be stuck at one of them.

    From the middle of a bin, a neighbour is drawn with the probability 1 / (N popsize) of CMA-ES with margin (Hamano et
    al. 2022, arXiv:2205.13482, section 4.1). Continuous coordinates have no limit.
    """
    distance = -ndtri(0.5 / (len(bins) * popsize))  # in standard deviations, for both sides together
    return np.array([0.5 / n / distance if n else 0.0 for n in bins])
