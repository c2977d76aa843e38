"""Settings of a race that a spec leaves open: a study keeps those that were in force when it was created."""

from __future__ import annotations

from typing import Final

import optuna

from evomerge.documents import Frozen, validate
from evomerge.spec import Estimator
from evomerge.storage import attributes


class RaceDefaults(Frozen):
    """Settings in place of those that the fidelity of a spec leaves open. Of the same names there.

    The defaults of this class are of studies that keep none: earlier releases raced in that way alone.
    """

    estimator: Estimator = "paired"
    futility: float = 0.0


CURRENT: Final = RaceDefaults(estimator="difference", futility=0.02)  # of studies that are created now


def read_race_defaults(study: optuna.Study) -> RaceDefaults:
    """The defaults of a study."""
    return validate(
        RaceDefaults, study.user_attrs.get(attributes.RACE, {}), f"settings of the race of {study.study_name!r}"
    )
