"""Exact copies of Optuna studies between storages of any two kinds.

`optuna.copy_study` commits each trial by itself, knows no siblings, and keeps ids of trials that mean others elsewhere:
genetic samplers store their parents by them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from evomerge.errors import InvalidInput
from evomerge.storage.opening import in_transaction
from evomerge.storage.optuna_internals import id_of

__all__ = ["StudyContent", "check_same", "read_study", "write_study"]

_BATCH: Final = 100  # trials that are stored at once
_NOTE: Final = re.compile(r"dashboard:(?P<trial>\d+):(?P<part>note_ver|note_str:\d+)$")
_PARENTS: Final = ":parent:"  # in keys of Optuna's genetic samplers, whose values are lists of ids of trials


@dataclass(frozen=True, kw_only=True)
class StudyContent:
    """All that a storage holds of a study."""

    name: str
    directions: Sequence[Any]
    user_attrs: dict[str, Any]
    system_attrs: Mapping[str, Any]
    trials: Sequence[FrozenTrial]


def read_study(storage: BaseStorage, name: str) -> StudyContent:
    """The content of a study. Its trials are the storage's own: never change them."""
    study_id = storage.get_study_id_from_name(name)
    return StudyContent(
        name=name,
        directions=storage.get_study_directions(study_id),
        user_attrs=storage.get_study_user_attrs(study_id),
        system_attrs=storage.get_study_system_attrs(study_id),
        trials=storage.get_all_trials(study_id, deepcopy=False),
    )


def write_study(storage: BaseStorage, content: StudyContent) -> None:
    """Store a study that the storage does not have, or only without trials."""
    study_id = _study(storage, content)
    ids: dict[int, int] = {}
    for start in range(0, len(content.trials), _BATCH):
        batch = content.trials[start : start + _BATCH]
        ids.update(in_transaction(storage, partial(_add, storage, study_id, batch)))
    system = {_moved(key, ids): _renumbered(key, value, ids) for key, value in content.system_attrs.items()}

    def write() -> None:
        for key, value in system.items():
            storage.set_study_system_attr(study_id, key, value)
        for key, value in content.user_attrs.items():
            storage.set_study_user_attr(study_id, key, value)

    in_transaction(storage, write)


def _study(storage: BaseStorage, content: StudyContent) -> int:
    try:
        return storage.get_study_id_from_name(content.name)
    except KeyError:
        return storage.create_new_study(list(content.directions), content.name)


def _add(storage: BaseStorage, study_id: int, trials: Sequence[FrozenTrial]) -> dict[int, int]:
    return {id_of(trial): storage.create_new_trial(study_id, template_trial=trial) for trial in trials}


def _moved(key: str, ids: Mapping[int, int]) -> str:
    """The key of an attribute in the copy: Optuna Dashboard keeps notes of trials under their ids."""
    found = _NOTE.match(key)
    if found is None or int(found["trial"]) not in ids:
        return key
    return f"dashboard:{ids[int(found['trial'])]}:{found['part']}"


def _renumbered(key: str, value: Any, ids: Mapping[int, int]) -> Any:
    if _PARENTS in key and isinstance(value, list):
        return [ids[each] for each in value]
    return value


def check_same(given: StudyContent, copied: StudyContent) -> None:
    """Check that a copy is the same, but for the ids of trials.

    Raises:
        InvalidInput: it is not, as in a storage that somebody else writes to.
    """
    different = len(given.trials) != len(copied.trials) or list(given.directions) != list(copied.directions)
    different |= any(copied.user_attrs.get(key) != value for key, value in given.user_attrs.items())
    ids = {id_of(one): id_of(other) for one, other in zip(given.trials, copied.trials, strict=False)}
    different |= {_moved(key, ids) for key in given.system_attrs} != set(copied.system_attrs)
    different |= any(_facts(one) != _facts(other) for one, other in zip(given.trials, copied.trials, strict=False))
    if different:
        raise InvalidInput(
            f"the copy of study {given.name!r} is not the same ({len(copied.trials)} of {len(given.trials)} trials); "
            "somebody else writes to one of the storages: stop it, and copy again"
        )


def _facts(trial: FrozenTrial) -> tuple[Any, ...]:
    """The parts in which two storages must agree. Times they may round: MySQL keeps whole seconds."""
    steps = {step: repr(value) for step, value in trial.intermediate_values.items()}  # NaN is not equal to itself
    values = None if trial.state is TrialState.WAITING else repr(trial.values)
    facts = (trial.params, trial.distributions, trial.user_attrs, trial.system_attrs)
    return (trial.number, trial.state, values, steps, *facts)
