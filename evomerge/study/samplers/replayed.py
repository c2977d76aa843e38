"""Samplers whose state is a function of the study: they learn its results again, in the order of their telling."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from evomerge.study.samplers.keyed import KeyedSampler
from evomerge.study.samplers.space import SamplerSpace
from evomerge.study.samplers.told import in_tell_order

__all__ = ["ReplayedSampler"]


class ReplayedSampler(KeyedSampler):
    """Base of the samplers that learn. A running one and one that was made anew execute the same code."""

    def __init__(self, space: SamplerSpace, *, seed: int) -> None:
        super().__init__(space, seed=seed)
        self._seen: list[int] = []

    def _forget(self) -> None:
        """Go back to the state before the first result."""
        raise NotImplementedError

    def _hear(self, study: Study, trial: FrozenTrial, ordinal: int) -> None:
        """Learn from a finished trial, if it can be learned from. `ordinal` is that of its proposal."""
        raise NotImplementedError

    def _catch_up(self, study: Study, known: Sequence[FrozenTrial]) -> None:
        """Learn from the trials that have finished since the last time."""
        trials = in_tell_order(known)
        if [trial.number for trial in trials[: len(self._seen)]] != self._seen:
            self._seen = []  # another study, or a trial was inserted before one that we have learned from
            self._forget()
        half_asked = self._half_asked(known)
        for trial in trials[len(self._seen) :]:
            self._seen.append(trial.number)
            self._hear(study, trial, trial.number - bisect_left(half_asked, trial.number))

    def _half_asked(self, trials: Sequence[FrozenTrial]) -> list[int]:
        """Numbers of the trials that never became a proposal: see `ordinal`."""
        failed = (trial for trial in trials if trial.state == TrialState.FAIL)
        return [trial.number for trial in failed if not self._space.is_complete(trial.params)]
