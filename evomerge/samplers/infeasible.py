"""Proposals that were refused without being scored, as samplers learn from them: worse than everything with a score.

They are FAILED trials with a number by which a worse one is told apart, and have their place in the order of telling.
"""

from __future__ import annotations

import copy

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from evomerge.storage.attributes import INFEASIBLE
from evomerge.storage.optuna_internals import with_further_trials
from evomerge.trial_store.trial_memory import known_trials

__all__ = ["excess_of", "with_infeasible"]


def excess_of(trial: FrozenTrial) -> float | None:
    """By how much the proposal of a trial is out of bounds; None where it was not refused for that."""
    excess = trial.user_attrs.get(INFEASIBLE)
    return float(excess) if isinstance(excess, int | float) else None


def with_infeasible(study: Study) -> Study:
    """The study as Optuna's own samplers are to see it: refused proposals are pruned trials that miss a constraint.

    They read pruned trials, and no failed ones.
    """
    failed = [trial for trial in known_trials(study, (TrialState.FAIL,)) if excess_of(trial) is not None]
    return with_further_trials(study, [_missing(trial) for trial in failed]) if failed else study


def _missing(trial: FrozenTrial) -> FrozenTrial:
    shown = copy.copy(trial)
    shown.state = TrialState.PRUNED
    shown.system_attrs = {**trial.system_attrs, "constraints:feasible": excess_of(trial)}
    return shown
