"""The trials of a study in the memory of its only writer: what is asked for at every proposal takes constant time."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Final

from optuna import Study
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.trial import FrozenTrial, TrialState

from evomerge.storage.optuna_internals import cached_trials, id_of, id_of_study, storage_of

__all__ = ["KeepsTrials", "TrialMemory", "known_trials", "loose", "memory_of", "with_changes"]

_SPARSE: Final = 4  # an index is used where at most one of so many trials is wanted


class TrialMemory:
    """All trials of one study. Those that are given out are never changed: a changed one takes the place of the old.

    A new memory is made whenever the trials are read again: who has looked at one needs to look only at what was added
    to it, as long as it is the same object.

    Attributes:
        finished: the finished trials: first those that were read, by number, then others in the order of finishing.
    """

    def __init__(self, trials: Iterable[FrozenTrial] = ()) -> None:
        self._trials: dict[int, FrozenTrial] = {}
        self._by_state: dict[TrialState, dict[int, None]] = {state: {} for state in TrialState}
        self._distributions: dict[str, BaseDistribution] = {}
        self.finished: list[FrozenTrial] = []
        self.latest_id = -1
        for trial in sorted(trials, key=lambda trial: trial.number):
            self.add(trial)

    def __len__(self) -> int:
        return len(self._trials)

    def __getitem__(self, number: int) -> FrozenTrial:
        return self._trials[number]

    def add(self, trial: FrozenTrial) -> None:
        """Add a trial with a number above all others."""
        self._trials[trial.number] = trial
        self._by_state[trial.state][trial.number] = None
        self.latest_id = max(self.latest_id, id_of(trial))
        if not trial.distributions.keys() <= self._distributions.keys():
            self._distributions = {**trial.distributions, **self._distributions}
        if trial.state.is_finished():
            self.finished.append(trial)

    def replace(self, trial: FrozenTrial) -> None:
        """Put a changed trial in the place of the one with its number, which has not finished."""
        before = self._trials[trial.number].state
        self._trials[trial.number] = trial
        if trial.state is not before:
            del self._by_state[before][trial.number]
            self._by_state[trial.state][trial.number] = None
            if trial.state.is_finished():
                self.finished.append(trial)

    def check_distribution(self, name: str, distribution: BaseDistribution) -> None:
        """Refuse, as Optuna does, a distribution that does not go with that of other trials.

        Raises:
            ValueError: another kind, or other choices.
        """
        known = self._distributions.setdefault(name, distribution)
        if known is not distribution:
            check_distribution_compatibility(known, distribution)

    def select(self, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """The trials in these states, by number; all without any."""
        if states is None:
            return list(self._trials.values())
        chosen = [numbers for state, numbers in self._by_state.items() if state in states]
        if _SPARSE * sum(map(len, chosen)) > len(self._trials):
            return [trial for trial in self._trials.values() if trial.state in states]
        return [self._trials[number] for number in sorted(number for numbers in chosen for number in numbers)]


class KeepsTrials:
    """A storage that keeps the trials of a study in memory, because no other process changes them."""

    def memory(self, study_id: int) -> TrialMemory:
        """The trials of a study, which are read the first time."""
        raise NotImplementedError


def memory_of(study: Study) -> TrialMemory | None:
    """The trials of a study in memory; None where its storage does not keep them."""
    storage = storage_of(study)
    return storage.memory(id_of_study(study)) if isinstance(storage, KeepsTrials) else None


def known_trials(study: Study, states: Container[TrialState]) -> list[FrozenTrial]:
    """The trials in these states as they were when the latest proposal was begun."""
    memory = memory_of(study)
    return cached_trials(study, states) if memory is None else memory.select(states)


def with_changes(trial: FrozenTrial, **changes: object) -> FrozenTrial:
    """A trial with other values of these attributes. `copy.copy` takes ten times as long."""
    changed = object.__new__(FrozenTrial)
    changed.__dict__.update(trial.__dict__)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def loose(trial: FrozenTrial) -> FrozenTrial:
    """A copy that may be written to, as `optuna.Trial` writes to what it gets of an unfinished trial."""
    names = ("params", "distributions", "user_attrs", "system_attrs", "intermediate_values")
    return with_changes(trial, **{name: dict(getattr(trial, name)) for name in names})
