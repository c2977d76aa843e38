"""Draws that are keyed by what they are for: the seed of the study and the ordinal of the proposal.

A generator that lives in the process is somewhere else after a restart. A keyed draw is the same in any process, at any
time and whatever else has been drawn, which is what lets a resumed study go on as if nothing had happened.
"""

from __future__ import annotations

from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from evomerge.seeding import derive
from evomerge.study.samplers.space import SamplerSpace

__all__ = ["SEEDS", "KeyedSampler"]

SEEDS = 2**32  # numpy's RandomState, which Optuna's samplers draw from, takes seeds below this


class KeyedSampler(BaseSampler):
    """Base of all samplers here. It knows the ordinal of a proposal, and answers what no search space foresaw."""

    def __init__(self, space: SamplerSpace, *, seed: int) -> None:
        self._space = space
        self._seed = seed
        self._latest = (-1, -1)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        # Once per trial and not once per parameter.
        self._latest = (trial.number, _ordinal(study, trial, self._space))

    def ordinal(self, study: Study, trial: FrozenTrial) -> int:
        """The position of the trial among the proposals: its number, less the trials before it that never became one.

        A controller that is killed while it asks leaves a trial without all its params, which is then failed, and
        proposed again under a new number. Trials that are being asked at the same moment, by the threads of
        `Study.optimize(n_jobs=…)`, have different ordinals.
        """
        number, position = self._latest
        return position if number == trial.number else _ordinal(study, trial, self._space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A uniform draw, keyed by the parameter's name too. For parameters that the search space does not have."""
        seed = derive(self._seed, "independent", self.ordinal(study, trial), param_name) % SEEDS
        return RandomSampler(seed=seed).sample_independent(study, trial, param_name, param_distribution)


def _ordinal(study: Study, trial: FrozenTrial, space: SamplerSpace) -> int:
    failed = study._get_trials(deepcopy=False, states=(TrialState.FAIL,), use_cache=True)
    half_asked = sum(1 for other in failed if other.number < trial.number and not space.is_complete(other.params))
    return trial.number - half_asked
