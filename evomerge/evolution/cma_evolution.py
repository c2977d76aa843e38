"""CMA-ES over a sequence of results: populations, means as proposals, restarts.

An `Evolution` is a function of its settings, the seed and the results in the order in which they were learned. What is
proposed depends on the ordinal of the proposal as well, and on nothing else: not on what was proposed before.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import InvalidInput
from evomerge.evolution.cma_strategy import KeyedNormal, Strategy

__all__ = ["GENERATION_MODES", "RESTARTS", "Evaluation", "Evolution", "EvolutionSettings"]

Point = NDArray[np.float64]

GENERATION_MODES: Final = ("async", "sync")
RESTARTS: Final = ("none", "ipop", "bipop")

SMALLEST_POPSIZE: Final = 3  # pycma's limit

# What a draw is for: the first part of its key.
_PROPOSAL, _POPULATION, _RESTART = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class EvolutionSettings:
    """Settings of an evolution, fixed when a study is created: with others its results would give another state.

    Attributes:
        sigma0: initial standard deviation, as a share of the box.
        popsize: results that make one update, before restarts enlarge it.
        generation_mode: `async`: draw from the distribution as it is. `sync`: wait for whole generations.
        restarts: when the distribution has shrunk to a point, begin again elsewhere, with twice the population (`ipop`;
            Auger & Hansen 2005), or in turn with a large and a small one (`bipop`; Hansen 2009); or continue (`none`).
        mean_every: propose the distribution's mean every `mean_every` trials; 0 disables it.
    """

    sigma0: float
    popsize: int
    generation_mode: str = "async"
    restarts: str = "ipop"
    mean_every: int = 0

    def __post_init__(self) -> None:
        if self.popsize < SMALLEST_POPSIZE:
            raise InvalidInput(f"popsize must be at least {SMALLEST_POPSIZE}, but got {self.popsize!r}")
        if not (math.isfinite(self.sigma0) and self.sigma0 > 0):
            raise InvalidInput(f"sigma0 must be a finite number above 0, but got {self.sigma0!r}")
        if self.mean_every < 0:
            raise InvalidInput(f"mean_every must be at least 0, but got {self.mean_every!r}")
        for name, value, known in (
            ("generation_mode", self.generation_mode, GENERATION_MODES),
            ("restarts", self.restarts, RESTARTS),
        ):
            if value not in known:
                raise InvalidInput(f"{name} must be one of {', '.join(known)}, but got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of one proposal.

    Attributes:
        ordinal: of the proposal.
        point: in the unit cube.
        loss: smaller is better.
        companion: larger is better; decides between equal losses, and only there.
        asked: somebody asked for the point, so that it is not the mean whatever its ordinal.
    """

    ordinal: int
    point: Point
    loss: float
    companion: float = -math.inf
    asked: bool = False


@dataclass(kw_only=True)
class _Run:
    """One strategy, from its start to its convergence."""

    strategy: Strategy
    small: bool  # one of the small runs of bipop
    updates: int = 0
    evaluations: int = 0
    median: float = math.inf  # of the losses of the latest population


class Evolution:
    """Runs of CMA-ES, one after the other.

    Args:
        centre: where the first run begins.
        bins: for each coordinate the number of its values, 0 where it is continuous.
        seed: of all draws.
        settings: see `EvolutionSettings`.
    """

    def __init__(self, centre: Point, bins: Sequence[int], seed: int, settings: EvolutionSettings) -> None:
        self._centre = centre
        self._bins = bins
        self._settings = settings
        self._normal = KeyedNormal(seed)
        self._open: list[Evaluation] = []
        self._ended: list[_Run] = []
        self._run = self._first()
        self.generation = 0

    @property
    def popsize(self) -> int:
        """Of the run that is under way."""
        return self._run.strategy.popsize

    @property
    def waiting(self) -> int:
        """Results that wait for the rest of their population."""
        return len(self._open)

    @property
    def restarts(self) -> int:
        """Number of restarts."""
        return len(self._ended)

    @property
    def strategy(self) -> Strategy:
        """The distribution that proposals come from."""
        return self._run.strategy

    @property
    def mean(self) -> Point:
        """The mean of the best run, by the median of its latest population."""
        return min([*self._ended, self._run], key=lambda run: run.median).strategy.mean

    def proposes_mean(self, ordinal: int) -> bool:
        """Whether it is the mean's turn. Not in the first population: there it is where the search begins."""
        every = self._settings.mean_every
        return bool(every) and ordinal % every == every - 1 and ordinal >= self._settings.popsize

    def propose(self, ordinal: int) -> Point:
        """A draw that is keyed by the ordinal, or the mean if it is its turn."""
        if self.proposes_mean(ordinal):
            return self._run.strategy.mean
        self._normal.key(_PROPOSAL, ordinal)
        return self._run.strategy.draw()

    def learn(self, result: Evaluation) -> None:
        """Add a result. The last one of a population updates the distribution.

        The mean's own result is no member of a population: a step of length zero that ranks high would make all steps
        shorter.
        """
        is_mean = self.proposes_mean(result.ordinal) and not result.asked
        if is_mean or self._is_from_previous_run(result):
            return
        self._open.append(result)
        if len(self._open) < self.popsize:
            return
        population, self._open = self._open, []
        if self._settings.generation_mode == "sync":
            population.sort(key=lambda each: each.ordinal)  # in which order they finished is of no interest
        self._update(population)
        if self._settings.restarts != "none" and self._run.strategy.arrived:
            self._ended.append(self._run)
            self._run = self._next()

    def _update(self, population: Sequence[Evaluation]) -> None:
        self._normal.key(_POPULATION, self.generation)
        self.generation += 1
        ranked = sorted(population, key=lambda each: (each.loss, -each.companion))
        self._run.strategy.tell([each.point for each in ranked], break_ties(ranked))
        self._run.updates += 1
        self._run.evaluations += len(population)
        self._run.median = statistics.median(each.loss for each in population)

    def _is_from_previous_run(self, result: Evaluation) -> bool:
        """Whether it was proposed by a run that ended while it was being evaluated.

        Learning from it would pull the new run back to the old optimum. Only the first population of a run is
        concerned; the old distribution is a point by then, so that the position of the result tells its origin.
        """
        if not self._ended or self._run.updates:
            return False
        return self._ended[-1].strategy.is_plausible_draw(result.point)

    def _first(self) -> _Run:
        return _Run(
            strategy=self._strategy_from(self._centre, self._settings.sigma0, self._settings.popsize), small=False
        )

    def _next(self) -> _Run:
        """A run from a random point of the cube, as in both papers, with a large or a small population in turn."""
        self._normal.key(_RESTART, len(self._ended))
        start = self._normal.uniform(len(self._centre))
        first = self._settings.popsize
        large = first * 2 ** (1 + sum(not run.small for run in self._ended[1:]))
        if self._settings.restarts == "ipop" or self._spent(small=False) <= self._spent(small=True):
            return _Run(strategy=self._strategy_from(start, self._settings.sigma0, large), small=False)
        # Hansen 2009, "Benchmarking a BI-population CMA-ES on the BBOB-2009 function testbed", section 2.
        size_exponent, step_exponent = self._normal.uniform(2)
        popsize = max(SMALLEST_POPSIZE, math.floor(first * (large / 4 / first) ** (size_exponent**2)))
        sigma0 = self._settings.sigma0 * 10 ** (-2 * step_exponent)
        return _Run(strategy=self._strategy_from(start, sigma0, popsize), small=True)

    def _strategy_from(self, start: Point, sigma0: float, popsize: int) -> Strategy:
        return Strategy(start, sigma0, popsize, bins=self._bins, normal=self._normal)

    def _spent(self, *, small: bool) -> int:
        """Evaluations of the large or the small runs; the first run is neither."""
        return sum(run.evaluations for run in self._ended[1:] if run.small == small)


def break_ties(ranked: Sequence[Evaluation]) -> list[float]:
    """The losses of ranked results, where a better companion makes a loss smaller by the least that floats can tell.

    Only equal losses are told apart; the order between different ones stays as it is.
    """
    losses: list[float] = []
    for number, result in enumerate(ranked):
        if not losses:
            losses.append(result.loss)
            continue
        before = ranked[number - 1]
        same = (result.loss, result.companion) == (before.loss, before.companion)
        above = losses[-1] if same else float(np.nextafter(losses[-1], math.inf))
        losses.append(max(result.loss, above))
    return losses
