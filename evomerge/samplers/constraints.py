"""Constraints: conditions that a result has to meet, recorded with each trial as it is told.

Optuna 5 reads constraints from the trials, where `tpe`, `gp`, `nsgaii` and `nsgaiii` look for them, and where
`Study.best_trial` does. The samplers' own argument `constraints_func` is deprecated since then, so that it is not used.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from evomerge.errors import InvalidInput
from evomerge.samplers.base import SearchSampler
from evomerge.storage.optuna_internals import id_of, storage_of

__all__ = ["ConstrainedSampler", "Constraints"]

Constraints = Callable[[FrozenTrial], Sequence[float]]


class ConstrainedSampler(SearchSampler):
    """Another sampler that also records the constraints of each COMPLETE or PRUNED trial.

    Args:
        sampler: proposes.
        constraints: one number per condition, always the same conditions in the same order; a trial is feasible when
            none is above 0. It is given the trial with its params, user attributes, state and values. It should be a
            function of these alone: a tell that a crash has cut short is repeated.
    """

    def __init__(self, sampler: SearchSampler, constraints: Constraints) -> None:
        self.sampler = sampler
        self._constraints = constraints

    @property
    def popsize(self) -> int | None:
        return self.sampler.popsize

    def ready(self, study: Study) -> bool:
        return self.sampler.ready(study)

    def mean(self, study: Study) -> dict[str, Any] | None:
        return self.sampler.mean(study)

    def reseed_rng(self) -> None:
        self.sampler.reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        if state in (TrialState.COMPLETE, TrialState.PRUNED):
            for key, value in self._measured(trial, state, values).items():
                # What Trial.set_constraint writes. A frozen trial cannot, and a sampler is not given the trial itself.
                storage_of(study).set_trial_system_attr(id_of(trial), f"constraints:{key}", value)
        self.sampler.after_trial(study, trial, state, values)

    def _measured(self, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> Mapping[str, float]:
        finished = copy.copy(trial)
        finished.state = state
        finished.values = values
        measured = {str(i): float(value) for i, value in enumerate(self._constraints(finished))}
        for key, value in measured.items():
            if math.isnan(value):
                raise InvalidInput(f"constraint {key} of trial {trial.number} is not a number")
        return measured
