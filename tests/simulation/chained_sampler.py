"""A sampler whose every proposal depends on all results before it, and a space of one number for it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from evomerge.objective import Assessment
from evomerge.recipe import ModelRef, single_source
from evomerge.samplers.base import SearchSampler, in_tell_order
from evomerge.storage.attributes import TELL
from evomerge.trial_store.trial_memory import known_trials

RECIPE = single_source(ModelRef("base", "none"), ModelRef("expert", "none"), ("weight",), "float32")
_ALL = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED)


class OneNumber:
    """A space with one param, which is all that tells its candidates apart."""

    distributions: Mapping[str, BaseDistribution] = {"x": FloatDistribution(0.0, 1.0)}
    initial: Sequence[Mapping[str, Any]] = ()

    def is_complete(self, params: Mapping[str, Any]) -> bool:
        return set(params) == {"x"}

    def decode(self, params: Mapping[str, Any]) -> Any:
        return RECIPE

    def active(self, params: Mapping[str, Any]) -> Any:
        return self.distributions

    def infeasible(self, recipe: Any) -> None:
        return None


class TheValue:
    """An objective: the value of the only task."""

    def assess(self, scores: Any) -> Assessment:
        return Assessment(value=scores.tasks["task"].value, stderr=None)


def proposed(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Whole proposals, in their order: those that were cut short are no part of the chain."""
    return sorted((trial for trial in trials if trial.params), key=lambda trial: trial.number)


def link(ordinal: int, results: Sequence[FrozenTrial]) -> float:
    """The param of a proposal, as a hash of the results that it learns from."""
    text = repr((ordinal, [(each.params["x"], each.values) for each in results]))
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12


def chain_is_whole(trials: Sequence[FrozenTrial], generation: int, workers: int) -> bool:
    """Whether each proposal is the one that follows from the results that were told before it."""
    chain = proposed(trials)
    told = _in_order(trials)
    for ordinal, trial in enumerate(chain):
        if generation:
            possible = [_of_generations(chain[: ordinal // generation * generation])]
        elif workers == 1:
            possible = [_in_order(chain[:ordinal])]
        else:
            possible = [told[:count] for count in range(len(told) + 1)]
        if not any(trial.params["x"] == link(ordinal, results) for results in possible):
            return False
    return True


def _in_order(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return sorted(_of_generations(trials), key=lambda trial: trial.user_attrs[TELL])


def _of_generations(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state is TrialState.COMPLETE]


class ChainedSampler(SearchSampler):
    """Proposes the hash of the results so far.

    Args:
        generation: of how many proposals; each waits for the results of all generations before its own. 0: none waits.
    """

    def __init__(self, generation: int) -> None:
        self._generation = generation

    def ready(self, study: Study) -> bool:
        if not self._generation:
            return True
        chain = proposed(study.get_trials(deepcopy=False, states=_ALL))
        before = len(chain) // self._generation * self._generation
        return all(trial.state.is_finished() for trial in chain[:before])

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> float:
        trials = known_trials(study, _ALL)
        chain = [each for each in proposed(trials) if each.number != trial.number]
        ordinal = len(chain)
        if self._generation:
            return link(ordinal, _of_generations(chain[: ordinal // self._generation * self._generation]))
        return link(ordinal, in_tell_order(trials))
