"""Rows of the sibling studies without a score: what could not be built or scored, with its reason."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from evomerge.storage import attributes

# How releases that did not note it end a reason by the machine.
_ATTEMPTS = re.compile(r"\((attempt \d+ of \d+|the machine was lost \d+ times)\)$")


@dataclass(frozen=True)
class RowFailure:
    """Reason of a row without a score. `by_machine`: the machine failed, and not the merge."""

    reason: str
    by_machine: bool


def read_failures(study: optuna.Study, *, by_machine: bool = True) -> dict[tuple[str, str], str]:
    """(label, digest of name, settings and data) -> reason of a baseline that could not be built, and was not later.

    Args:
        by_machine: with those that failed since the machine did, which the next run tries again.
    """
    found = _failed(study, attributes.MADE)
    return {key: each.reason for key, each in found.items() if key[1] and (by_machine or not each.by_machine)}


def read_left_out(study: optuna.Study) -> dict[tuple[str, str], RowFailure]:
    """(label, digest of the recipe) -> reason of a row that could not be scored, and was not later."""
    return _failed(study, attributes.RECIPE)


def _failed(study: optuna.Study, key: str) -> dict[tuple[str, str], RowFailure]:
    """(label, value of the attribute `key`) -> the latest failure, where no later row with both has a score."""
    found: dict[tuple[str, str], RowFailure] = {}
    for trial in _ended(study):
        attrs = trial.user_attrs
        if key not in attrs:
            continue
        place = (attrs.get(attributes.LABEL, ""), attrs[key])
        if trial.state is TrialState.COMPLETE:
            found.pop(place, None)
        elif attributes.FAILURE in attrs:
            reason = attrs[attributes.FAILURE]
            by_machine = bool(attrs.get(attributes.MACHINE)) or _ATTEMPTS.search(reason) is not None
            found[place] = RowFailure(reason, by_machine)
    return found


def _ended(study: optuna.Study) -> Iterator[FrozenTrial]:
    yield from study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
