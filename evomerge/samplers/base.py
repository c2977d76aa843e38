"""Base classes of the samplers: draws keyed by seed and ordinal, states replayed in the order of telling.

A generator that lives in the process is somewhere else after a restart. A keyed draw is the same in any process, at any
time and after any other draws, so that a resumed study continues as if nothing had happened. A replayed state learns
the results of the study again, in the order in which they were told.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, cast

from optuna.distributions import BaseDistribution
from optuna.pruners import HyperbandPruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from evomerge.errors import InvalidInput
from evomerge.samplers.infeasible import excess_of
from evomerge.seeding import derive
from evomerge.storage.attributes import OVERTAKEN, TELL
from evomerge.storage.optuna_internals import cached_trials
from evomerge.trial_store.trial_memory import TrialMemory, memory_of

__all__ = [
    "SEEDS",
    "ReplayingSampler",
    "SamplerInputs",
    "SamplerSpace",
    "SearchSampler",
    "SeededSampler",
    "in_tell_order",
    "sampler_of",
]


SEEDS = 2**32  # numpy's RandomState, which Optuna's samplers draw from, takes seeds below this


class SamplerSpace(Protocol):
    """The search space as samplers see it. It is given once and never inferred from the trials of a study, where one
    odd trial would change it."""

    @property
    def distributions(self) -> Mapping[str, BaseDistribution]:
        """Every parameter with its distribution, in a fixed order."""
        ...

    @property
    def conditional(self) -> bool:
        """Whether some parameters exist only for some values of others."""
        ...

    @property
    def centre(self) -> Mapping[str, Any]:
        """The params that a search starts from."""
        ...

    def active(self, params: Mapping[str, Any]) -> Iterator[str]:
        """Names of the parameters that exist beside those of `params`, parents first."""
        ...

    def is_complete(self, params: Mapping[str, Any]) -> bool:
        """Whether every parameter that exists has a value."""
        ...


@dataclass(frozen=True, kw_only=True)
class SamplerInputs:
    """All that a sampler is built from.

    Attributes:
        settings: those of the spec; settings that are absent or None have their defaults.
        seed: of the study.
        space: the space to search.
        workers: candidates that are scored at a time; only defaults depend on it.
        tie_breaker: user attribute of a trial that ranks trials of equal value, see `CmaSampler`. Others ignore it.
        first_step: first steps as a share of the usual ones, below 1 where the centre is a good merge already. Only
            `cma` has use for it.
        begin: params of a good merge, to begin at in place of the centre. Only `cma` has use for it.
    """

    settings: Mapping[str, Any]
    seed: int
    space: SamplerSpace
    workers: int
    tie_breaker: str | None = None
    first_step: float = 1.0
    begin: Mapping[str, Any] | None = None


def in_tell_order(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that can be learned from, by their user attribute `evomerge:tell`: COMPLETE and PRUNED ones, and
    proposals that were refused without being scored.

    Trials without it come first, in the order of their completion.
    """
    scored = (TrialState.COMPLETE, TrialState.PRUNED)
    return sorted((trial for trial in trials if trial.state in scored or excess_of(trial) is not None), key=_position)


def _position(trial: FrozenTrial) -> tuple[int, Any, int]:
    told = trial.user_attrs.get(TELL)
    if isinstance(told, int):
        return (1, told, trial.number)
    return (0, trial.datetime_complete or datetime.min, trial.number)


class SearchSampler(BaseSampler):
    """Base of all samplers here: an Optuna sampler with three abilities that a search asks for.

    The defaults are those of a sampler without a distribution of its own. A sampler that wraps another one forwards
    them.
    """

    @property
    def popsize(self) -> int | None:
        """Results that make one update; None without populations. A study fixes it when it is created."""
        return None

    def ready(self, study: Study) -> bool:
        """Whether the next proposal can be made now, or results have to be waited for."""
        return True

    def mean(self, study: Study) -> dict[str, Any] | None:
        """The params at the mean of the distribution after all results of the study; None without a mean."""
        return None


def refuse_hyperband(study: Study, sampler: str) -> None:
    """Refuse a pruner that splits the trials into brackets.

    Raises:
        InvalidInput: the study has Optuna's `HyperbandPruner`.
    """
    if isinstance(study.pruner, HyperbandPruner):
        raise InvalidInput(f"the {sampler} sampler cannot learn from Hyperband's brackets; use another pruner, or tpe")


def sampler_of(study: Study) -> SearchSampler:
    """The sampler of a study that was opened for a search: `build_sampler` builds no other kind."""
    return cast(SearchSampler, study.sampler)


class SeededSampler(SearchSampler):
    """Base of the samplers that propose. Knows the ordinal of a proposal, and draws parameters outside the space."""

    def __init__(self, space: SamplerSpace, *, seed: int) -> None:
        self._space = space
        self._seed = seed
        self._latest = (-1, -1)
        self._half_asked = _HalfAsked(space)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        # Once per trial and not once per parameter.
        self._latest = (trial.number, self._ordinal(study, trial))

    def ordinal(self, study: Study, trial: FrozenTrial) -> int:
        """The position of the trial among the proposals: its number, less the trials before it that never became one.

        A controller that is killed while it asks leaves a trial without all its params, which is then failed, and
        proposed again under a new number. Trials that are being asked at the same moment, by the threads of
        `Study.optimize(n_jobs=…)`, have different ordinals. A trial that others enqueued may be refused after later
        ones were proposed: it still counts, or two of them would have one ordinal, and be one draw.
        """
        number, position = self._latest
        return position if number == trial.number else self._ordinal(study, trial)

    def _ordinal(self, study: Study, trial: FrozenTrial) -> int:
        return trial.number - bisect_left(self._half_asked.numbers(study), trial.number)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A uniform draw, keyed by the parameter's name too. For parameters that the search space does not have."""
        seed = derive(self._seed, "independent", self.ordinal(study, trial), param_name) % SEEDS
        return RandomSampler(seed=seed).sample_independent(study, trial, param_name, param_distribution)


class _HalfAsked:
    """Numbers of the trials that never became a proposal, in ascending order, without those that were overtaken.

    Of a study that is kept in memory only the trials are looked at that have finished since the last time.
    """

    def __init__(self, space: SamplerSpace) -> None:
        self._space = space
        self._memory: TrialMemory | None = None
        self._looked_at = 0
        self._numbers: list[int] = []

    def numbers(self, study: Study) -> list[int]:
        memory = memory_of(study)
        if memory is None:
            return self._among(cached_trials(study, (TrialState.FAIL,)))
        if memory is not self._memory:
            self._memory, self._looked_at, self._numbers = memory, 0, []
        for number in self._among(memory.finished[self._looked_at :]):
            insort(self._numbers, number)
        self._looked_at = len(memory.finished)
        return self._numbers

    def _among(self, trials: Sequence[FrozenTrial]) -> list[int]:
        failed = (trial for trial in trials if trial.state == TrialState.FAIL and not trial.user_attrs.get(OVERTAKEN))
        return [trial.number for trial in failed if not self._space.is_complete(trial.params)]


class ReplayingSampler(SeededSampler):
    """Base of the samplers that learn: their state is a function of the results in the study, in the order of telling.

    The contract of the state, which a subclass implements with `_reset` and `_learn`:

    * `sample_relative` calls `_replay_new_results`, and then draws without changing the state.
    * `_reset` sets the state before the first result; `_learn` is called once for each finished trial after that, in
      the order of telling, also for trials that it has to ignore.
    * If a trial was inserted before one that has been learned from, all is learned again from `_reset`.
    * Hence a running sampler and a new one execute the same calls and agree bit for bit. Nothing else may be stored.

    Example: trials 0 and 2 are told, then a proposal is asked for: `_learn(0)`, `_learn(2)`. Trial 1 is told, and
    another one is asked for: `_learn(1)` only. After a restart the first proposal gives `_reset()` (in the
    constructor), `_learn(0)`, `_learn(2)`, `_learn(1)`.
    """

    def __init__(self, space: SamplerSpace, *, seed: int) -> None:
        super().__init__(space, seed=seed)
        self._seen: list[int] = []
        self._memory: TrialMemory | None = None
        self._looked_at = 0  # finished trials of that memory

    def _reset(self) -> None:
        """Set the state before the first result."""
        raise NotImplementedError

    def _learn(self, study: Study, trial: FrozenTrial, ordinal: int) -> None:
        """Update the state with a finished trial, or ignore it. `ordinal` is that of its proposal."""
        raise NotImplementedError

    def _replay_new_results(self, study: Study, known: Sequence[FrozenTrial]) -> None:
        """Learn from the trials that have finished since the last time."""
        memory = memory_of(study)
        if memory is None:
            self._memory = None
            self._learn_from(study, in_tell_order(known))
            return
        new = in_tell_order(memory.finished[self._looked_at :]) if memory is self._memory else None
        if new is None or (new and self._seen and _position(new[0]) < _position(memory[self._seen[-1]])):
            self._learn_from(study, in_tell_order(memory.finished))
        else:
            self._learn_further(study, new)
        self._memory, self._looked_at = memory, len(memory.finished)

    def _learn_from(self, study: Study, trials: Sequence[FrozenTrial]) -> None:
        """Learn from all trials of the study, of which some may be known."""
        if [trial.number for trial in trials[: len(self._seen)]] != self._seen:
            self._seen = []  # another study, or a trial was inserted before one that we have learned from
            self._reset()
        self._learn_further(study, trials[len(self._seen) :])

    def _learn_further(self, study: Study, trials: Sequence[FrozenTrial]) -> None:
        half_asked = self._half_asked.numbers(study)
        for trial in trials:
            self._seen.append(trial.number)
            self._learn(study, trial, trial.number - bisect_left(half_asked, trial.number))
