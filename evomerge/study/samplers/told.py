"""The results of a study in the order in which they were told, which is what a rebuilt state depends on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from evomerge.storage.attributes import TELL

__all__ = ["in_tell_order"]


def in_tell_order(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that can be learned from, COMPLETE and PRUNED ones, by their user attribute `evomerge:tell`.

    Trials without it come first, in the order of their completion.
    """
    learned_from = (TrialState.COMPLETE, TrialState.PRUNED)
    return sorted((trial for trial in trials if trial.state in learned_from), key=_position)


def _position(trial: FrozenTrial) -> tuple[int, Any, int]:
    told = trial.user_attrs.get(TELL)
    if isinstance(told, int):
        return (1, told, trial.number)
    return (0, trial.datetime_complete or datetime.min, trial.number)
