"""Optuna's own samplers, built for every proposal so that no state is in the process.

A sampler of Optuna's keeps its random state in memory, and a resumed study would continue with other draws. Built anew
with a seed that is derived from the study's seed and the ordinal of the proposal, it depends on the study alone. What
that gives, with one worker:

* `random`, `tpe`, `nsgaii`, `nsgaiii`: a resumed study proposes exactly what the uninterrupted one would have proposed.
* `gp`: the same, on the same machine and with the same number of threads: fitting the kernel ends in an iterative
  optimiser, whose last bits follow the linear algebra. The fit starts from the same point each time and not from the
  previous one, which the process would have to remember.

All but `random` learn from constraints where the trials have some (see `constraints.py`), and all optimise several
objectives. With several workers the proposals depend on the order in which results arrive, as with every sampler.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.samplers.nsgaii import (
    BaseCrossover,
    BaseMutation,
    BLXAlphaCrossover,
    PolynomialMutation,
    SBXCrossover,
    SPXCrossover,
    UNDXCrossover,
    VSBXCrossover,
)
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from evomerge.errors import InvalidInput
from evomerge.samplers import settings
from evomerge.samplers.base import SEEDS, SamplerInputs, SeededSampler
from evomerge.samplers.infeasible import with_infeasible
from evomerge.seeding import derive

__all__ = ["StatelessSampler", "build_gp", "build_nsgaii", "build_nsgaiii", "build_random", "build_tpe"]


def build_random(inputs: SamplerInputs) -> StatelessSampler:
    """Uniform draws; no settings."""
    settings.read("random", inputs.settings, settings.NoSettings)
    return StatelessSampler(RandomSampler, name="random", inputs=inputs)


def build_tpe(inputs: SamplerInputs) -> StatelessSampler:
    """Tree-structured Parzen estimator, multivariate, with the running trials counted as bad ones (constant liar)."""
    chosen = settings.read("tpe", inputs.settings, settings.TpeSettings)
    make = partial(
        _tpe,
        startup=chosen.n_startup_trials,
        candidates=chosen.n_ei_candidates,
        conditional=inputs.space.conditional,
    )
    return StatelessSampler(make, name="tpe", inputs=inputs)


def build_gp(inputs: SamplerInputs) -> StatelessSampler:
    """Gaussian process with expected improvement: for a few hundred trials in up to about 20 dimensions."""
    chosen = settings.read("gp", inputs.settings, settings.GpSettings)
    if inputs.space.conditional:
        # It would model the parameters that every trial has, such as the methods, and draw all others at random.
        raise InvalidInput(
            "the sampler gp needs a space in which every parameter always exists; use catcma, or tpe, which serves "
            "several objectives too"
        )
    make = partial(_gp, startup=chosen.n_startup_trials)
    return StatelessSampler(make, name="gp", inputs=inputs, infer=True)


def build_nsgaii(inputs: SamplerInputs) -> StatelessSampler:
    """NSGA-II: an evolutionary algorithm for two or three objectives and big budgets.

    K. Deb et al., "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", doi:10.1109/4235.996017. `crossover`
    and `mutation` are by default those of that paper, simulated binary crossover and polynomial mutation: children are
    near their parents. `uniform` takes each parameter from one of the parents, and draws one anew. In a conditional
    space only the parameters that every trial has are inherited; the others are drawn at random.
    """
    options = _genetic_options(settings.read("nsgaii", inputs.settings, settings.NsgaiiSettings))
    return StatelessSampler(lambda seed: OrderedNSGAIISampler(seed=seed, **options), name="nsgaii", inputs=inputs)


def build_nsgaiii(inputs: SamplerInputs) -> StatelessSampler:
    """NSGA-III: like NSGA-II, but for more objectives, where nearly all results are Pareto-optimal.

    K. Deb, H. Jain, "An Evolutionary Many-Objective Optimization Algorithm Using Reference-Point-Based Nondominated
    Sorting Approach", doi:10.1109/TEVC.2013.2281535. `dividing_parameter`: divisions of each axis between the reference
    points, of which there are C(objectives + divisions - 1, divisions).
    """
    chosen = settings.read("nsgaiii", inputs.settings, settings.NsgaiiiSettings)
    make = partial(_nsgaiii, dividing_parameter=chosen.dividing_parameter, **_genetic_options(chosen))
    return StatelessSampler(make, name="nsgaiii", inputs=inputs)


_PROBABILITIES = ("mutation_prob", "crossover_prob", "swapping_prob")
_CROSSOVERS: dict[str, Callable[[], BaseCrossover | None]] = {
    "sbx": SBXCrossover,
    "uniform": lambda: None,  # Optuna's default, which takes `swapping_prob`
    "blx_alpha": BLXAlphaCrossover,
    "vsbx": VSBXCrossover,
    "spx": SPXCrossover,
    "undx": UNDXCrossover,
}
_MUTATIONS: dict[str, Callable[[], BaseMutation | None]] = {"polynomial": PolynomialMutation, "uniform": lambda: None}


def _genetic_options(chosen: settings.NsgaiiSettings) -> dict[str, Any]:
    options = chosen.model_dump(include=set(_PROBABILITIES), exclude_none=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        crossover = _CROSSOVERS[chosen.crossover]()
        mutation = _MUTATIONS[chosen.mutation]()
    if crossover is not None and chosen.population_size < crossover.n_parents:
        raise InvalidInput(
            f"sampler setting 'population_size' must be at least {crossover.n_parents} with crossover: "
            f"{chosen.crossover}, but got {chosen.population_size}"
        )
    return {**options, "crossover": crossover, "mutation": mutation, "population_size": chosen.population_size}


class StatelessSampler(SeededSampler):
    """Another sampler, built by `make(seed)` for every proposal.

    In a space without conditions the relative search space is the space itself, and not what Optuna would infer from
    the trials: a completed trial without params does not switch the sampler off.

    Args:
        make: builds the sampler from a 32-bit seed.
        name: keeps the seeds of different samplers apart.
        inputs: seed and space.
        infer: let the sampler find its search space in the trials after all. For `gp`, which cannot use trials that
            lack a parameter; for conditional spaces in any case.
    """

    def __init__(
        self, make: Callable[[int], BaseSampler], *, name: str, inputs: SamplerInputs, infer: bool = False
    ) -> None:
        super().__init__(inputs.space, seed=inputs.seed)
        self._make = make
        self._name = name
        self._infer = infer or inputs.space.conditional
        self._free = {name: d for name, d in inputs.space.distributions.items() if not d.single()}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        if self._infer:
            return self._make(0).infer_relative_search_space(study, trial)
        return dict(self._free)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        sampler = self._keyed(study, trial, "relative")
        if self._space.conditional:
            sampler.infer_relative_search_space(study, trial)  # where TPE finds the groups that it samples by
        return sampler.sample_relative(with_infeasible(study), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        sampler = self._keyed(study, trial, "independent", param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._make(0).after_trial(study, trial, state, values)

    def _keyed(self, study: Study, trial: FrozenTrial, *purpose: str) -> BaseSampler:
        return self._make(derive(self._seed, self._name, self.ordinal(study, trial), *purpose) % SEEDS)


def _tpe(seed: int, *, startup: int, candidates: int, conditional: bool) -> TPESampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # `group` has been experimental since Optuna 2.8
        return TPESampler(
            seed=seed,
            n_startup_trials=startup,
            n_ei_candidates=candidates,
            multivariate=True,
            group=conditional,
            constant_liar=True,
        )


def _gp(seed: int, *, startup: int) -> GPSampler:
    # A trial that lacks a parameter is no reason for a warning at every ask.
    return GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)


def _nsgaiii(seed: int, **options: Any) -> NSGAIIISampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # experimental since Optuna 3.2
        return OrderedNSGAIIISampler(seed=seed, **options)


class OrderedNSGAIISampler(NSGAIISampler):
    """NSGA-II whose parents always come in the order of their trials.

    Optuna gives them to the first proposal of a generation by rank, and to the others by trial: a proposal that is made
    again after a crash would be another one. The name of this class is part of the attribute keys that Optuna stores.
    """

    def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        return sorted(super().get_parent_population(study, generation), key=lambda trial: trial.number)


class OrderedNSGAIIISampler(NSGAIIISampler):
    """NSGA-III whose parents always come in the order of their trials, and whose children do not depend on who chose
    the parents. The name of this class is part of the attribute keys that Optuna stores."""

    def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        return sorted(super().get_parent_population(study, generation), key=lambda trial: trial.number)

    def select_parent(self, study: Study, generation: int) -> list[FrozenTrial]:
        # Here draws are taken from the generator of the children, which Optuna does not make public. A proposal that is
        # made again after a crash finds the parents stored and draws none.
        generator = self._rng.rng
        state = generator.get_state()
        parents = super().select_parent(study, generation)
        generator.set_state(state)
        return parents
