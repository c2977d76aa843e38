"""The part of a search's state that baselines depend on: the winner's digest and the number of finished trials."""

from __future__ import annotations

from dataclasses import dataclass

import optuna

from evomerge.storage import attributes
from evomerge.study.trials import FINISHED, is_counted


@dataclass(frozen=True)
class SearchSnapshot:
    """Search state that a baseline was built from.

    Attributes:
        best: digest of the winner's recipe, None before it has been named.
        trials: finished trials that count towards the budget.
    """

    best: str | None
    trials: int


def snapshot_of(study: optuna.Study) -> SearchSnapshot:
    """Read the snapshot of a search from its study."""
    winner = study.user_attrs.get(attributes.WINNER) or {}
    finished = study.get_trials(deepcopy=False, states=FINISHED)
    return SearchSnapshot(winner.get("digest"), sum(map(is_counted, finished)))
