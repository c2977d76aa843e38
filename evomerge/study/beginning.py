"""The merge that a sampler begins at in place of the centre of the space, as the study stores it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna

from evomerge.storage import attributes
from evomerge.storage.attributes import read_text, write_text


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """The point to begin at.

    Attributes:
        label: of the baseline whose nearest point it is.
        params: in the search space.
    """

    label: str
    params: Mapping[str, Any]


def write_beginning(study: optuna.Study, beginning: Beginning) -> None:
    """Store it: every sampler of the study begins there from now on."""
    write_text(study, attributes.BEGIN, json.dumps({"label": beginning.label, "params": dict(beginning.params)}))


def read_beginning(study: optuna.Study) -> Beginning | None:
    """The merge that the study begins at; None where it begins at the centre.

    Raises:
        InvalidInput: what is stored is torn.
    """
    text = read_text(study, attributes.BEGIN)
    return None if text is None else Beginning(**json.loads(text))
