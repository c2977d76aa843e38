"""Trials of a study as they are stored: rank, feasibility and cost."""

from __future__ import annotations

from collections.abc import Iterable

import optuna
from optuna.trial import FrozenTrial, TrialState

from evomerge.jobs import Cost
from evomerge.storage import attributes

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def best_trials(study: optuna.Study, count: int) -> list[FrozenTrial]:
    """The trials with the highest values, earlier ones first among equals; those that miss a constraint come last."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(complete, key=lambda trial: (not is_feasible(trial), -(value_of(trial) or 0.0), trial.number))[:count]


def value_of(trial: FrozenTrial) -> float | None:
    """The number that trials are ranked by: the value, or with several objectives the one that was stored for it."""
    stored = trial.user_attrs.get(attributes.VALUE)
    if stored is not None:
        return float(stored)
    return trial.values[0] if trial.values else None


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a finished trial meets all constraints."""
    return max(trial.user_attrs.get(attributes.VIOLATIONS, ()), default=0.0) <= 0


def is_counted(trial: FrozenTrial) -> bool:
    """Whether a finished trial counts towards the budget: one whose ask was cut short does not."""
    return not trial.user_attrs.get(attributes.INTERRUPTED)


def read_cost(trial: FrozenTrial) -> Cost:
    """The cost of a trial or row."""
    return Cost(**trial.user_attrs.get(attributes.COST, {}))


def total_cost(trials: Iterable[FrozenTrial]) -> Cost:
    """The cost of these trials together."""
    return sum(map(read_cost, trials), Cost())
