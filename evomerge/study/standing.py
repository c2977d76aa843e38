"""Where a search stands, as far as anything made beside it may follow from that."""

from __future__ import annotations

from dataclasses import dataclass

import optuna

from evomerge.storage import attributes
from evomerge.study.trials import FINISHED, is_counted


@dataclass(frozen=True)
class Standing:
    """What of the search itself a baseline may follow from.

    Attributes:
        best: digest of the winner's recipe, None before it has been named.
        trials: finished trials that count towards the budget.
    """

    best: str | None
    trials: int


def standing_of(study: optuna.Study) -> Standing:
    """Where a search stands, read from its study."""
    winner = study.user_attrs.get(attributes.WINNER) or {}
    finished = study.get_trials(deepcopy=False, states=FINISHED)
    return Standing(winner.get("digest"), sum(map(is_counted, finished)))
