"""The trials of a study that end while it is watched, each once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from evomerge.study.trials import FINISHED, is_counted, is_feasible, value_of
from evomerge.trial_store.trial_memory import TrialMemory, memory_of


@dataclass(frozen=True, kw_only=True)
class EndedTrial:
    """A trial that counts and has ended.

    Attributes:
        step: position among all ended trials of the study, from 0.
        best: value of the best trial so far, this one included; None before the first.
    """

    step: int
    trial: FrozenTrial
    best: float | None


class EndedTrials:
    """The trials of a study that have ended since the last look; at first those that end from now on.

    A study that is kept in memory is looked at from where the last look ended, however many trials it has.
    """

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._memory: TrialMemory | None = None
        self._looked_at = 0
        self._known: set[int] = set()
        self._best: tuple[bool, float] | None = None
        self.new()

    def new(self) -> list[EndedTrial]:
        """Those that have ended since the last time, in their order."""
        return [ended for ended in map(self._ended, self._unknown()) if is_counted(ended.trial)]

    def _unknown(self) -> Sequence[FrozenTrial]:
        memory = memory_of(self._study)
        start = self._looked_at if memory is not None and memory is self._memory else 0
        ended = self._study.get_trials(deepcopy=False, states=FINISHED) if memory is None else memory.finished[start:]
        self._memory, self._looked_at = memory, start + len(ended)
        return [trial for trial in ended if trial.number not in self._known]

    def _ended(self, trial: FrozenTrial) -> EndedTrial:
        value = value_of(trial)
        if trial.state is TrialState.COMPLETE and value is not None:
            rank = (is_feasible(trial), value)
            self._best = rank if self._best is None else max(self._best, rank)
        step = len(self._known)
        self._known.add(trial.number)
        return EndedTrial(step=step, trial=trial, best=None if self._best is None else self._best[1])
