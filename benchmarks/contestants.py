"""The samplers of search.py behind one interface: ours, Optuna's, and pycma itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution

from evomerge.samplers import build_sampler
from evomerge.samplers.base import SearchSampler
from evomerge.samplers.cma import CmaSampler
from evomerge.storage.attributes import TELL

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # that it cannot plot without matplotlib
    import cma

__all__ = ["SAMPLERS", "Contestant"]

Point = NDArray[np.float64]


class Contestant(Protocol):
    """A sampler that can be asked and told; the handle names a proposal."""

    def ready(self) -> bool: ...
    def ask(self) -> tuple[Any, Point]: ...
    def tell(self, handle: Any, value: float, order: int) -> None: ...
    def used(self) -> float | None:
        """The share of the results told that the sampler learned from."""
        ...


class OptunaContestant:
    """A sampler of Optuna's interface, in a study in memory."""

    def __init__(self, sampler: optuna.samplers.BaseSampler, space: BoxSpace) -> None:
        self._distributions = dict(space.distributions)
        self._sampler = sampler
        self._study = optuna.create_study(direction="maximize", sampler=sampler)

    def ready(self) -> bool:
        return not isinstance(self._sampler, SearchSampler) or self._sampler.ready(self._study)

    def ask(self) -> tuple[optuna.Trial, Point]:
        trial = self._study.ask(self._distributions)
        return trial, np.array([trial.params[name] for name in self._distributions])

    def tell(self, handle: optuna.Trial, value: float, order: int) -> None:
        handle.set_user_attr(TELL, order)
        self._study.tell(handle, value)

    def used(self) -> float | None:
        trials = self._study.get_trials(deepcopy=False)
        if isinstance(self._sampler, CmaSampler):
            self._sampler.mean(self._study)  # learns from the last results
            return len(self._sampler.told) / len(trials)
        if isinstance(self._sampler, optuna.samplers.CmaEsSampler):
            return _used_by_cma_es([trial.system_attrs for trial in trials], len(self._distributions))
        return None if isinstance(self._sampler, optuna.samplers.TPESampler) else 0.0


class Barrier:
    """pycma generation by generation: the next one begins when the last worker is done."""

    def __init__(self, dimensions: int, seed: int) -> None:
        options: dict[str, Any] = {"bounds": [0, 1], "verbose": -9, "verb_log": 0, "signals_filename": ""}
        options |= {"seed": np.nan, "randn": _Normal(seed)}
        self._strategy = cma.CMAEvolutionStrategy([0.5] * dimensions, 0.2, options)
        self._population: list[Point] = []
        self._values: dict[int, float] = {}
        self._asked = 0

    def ready(self) -> bool:
        return self._asked < len(self._population) or len(self._values) == len(self._population)

    def ask(self) -> tuple[int, Point]:
        if self._asked == len(self._population):
            self._next()
        self._asked += 1
        return self._asked - 1, np.asarray(self._population[self._asked - 1])

    def tell(self, handle: int, value: float, order: int) -> None:
        self._values[handle] = value

    def used(self) -> float:
        return 1.0

    def _next(self) -> None:
        if self._population:
            self._strategy.tell(self._population, [-self._values[n] for n in range(len(self._population))])
        self._population, self._values, self._asked = self._strategy.ask(), {}, 0


class _Normal:
    """pycma's draws, without the global generator."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> NDArray[np.float64]:
        return self._generator.standard_normal(shape)


class BoxSpace:
    """The unit cube as a search space."""

    conditional = False

    def __init__(self, dimensions: int) -> None:
        names = [f"x{number:02d}" for number in range(dimensions)]
        self.distributions: Mapping[str, BaseDistribution] = {name: FloatDistribution(0.0, 1.0) for name in names}
        self.centre: Mapping[str, Any] = dict.fromkeys(names, 0.5)

    def is_complete(self, params: Mapping[str, Any]) -> bool:
        return len(params) == len(self.distributions)


def _ours(settings: Mapping[str, Any]) -> Callable[[int, int, int], Contestant]:
    def build(dimensions: int, workers: int, seed: int) -> Contestant:
        space = BoxSpace(dimensions)
        return OptunaContestant(build_sampler("cma", settings, seed=seed, space=space, workers=workers), space)

    return build


def _optunas(make: Callable[[int], optuna.samplers.BaseSampler]) -> Callable[[int, int, int], Contestant]:
    return lambda dimensions, workers, seed: OptunaContestant(make(seed), BoxSpace(dimensions))


SAMPLERS: Final[Mapping[str, Callable[[int, int, int], Contestant]]] = {
    "cma": _ours({}),
    "cma_sync": _ours({"generation_mode": "sync"}),
    "cma_es": _optunas(lambda seed: optuna.samplers.CmaEsSampler(seed=seed)),
    "tpe": _optunas(lambda seed: optuna.samplers.TPESampler(seed=seed)),
    "random": _optunas(lambda seed: optuna.samplers.RandomSampler(seed=seed)),
    "barrier": lambda dimensions, workers, seed: Barrier(dimensions, seed),
}


def _used_by_cma_es(attributes: Sequence[Mapping[str, Any]], dimensions: int) -> float:
    """It learns from the first `popsize` results of each generation, and has finished all but the last."""
    popsize = cma_es_popsize(dimensions)
    generations = [each["cma:generation"] for each in attributes if "cma:generation" in each]
    latest = max(generations, default=0)
    return (latest * popsize + min(popsize, generations.count(latest))) / len(attributes)


def cma_es_popsize(dimensions: int) -> int:
    """CmaEsSampler's default."""
    return 4 + int(3 * np.log(dimensions))
