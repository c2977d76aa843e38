"""A trial that a person asks for: its params checked against the space, and enqueued in the study."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState

from evomerge.documents import parse_value, read_document
from evomerge.errors import InvalidInput
from evomerge.leases.holder import holder_of
from evomerge.messages import first_line
from evomerge.opening.inputs import open_inputs
from evomerge.opening.open_study import stored_space
from evomerge.requests.asked_point import check_point
from evomerge.spaces.bound import BoundSpace
from evomerge.storage import attributes
from evomerge.study.status import status_of
from evomerge.study.stored_search import StoredSearch
from evomerge.study.trials import best_trials

SCHEMA = 1


def ask_for_trial(stored: StoredSearch, given: Sequence[str], like: str | None = None) -> dict[str, Any]:
    """Enqueue a trial with these params, once: a running controller takes it next, else the next run.

    Args:
        given: `NAME=VALUE,…` or YAML files of params.
        like: "best", "centre" or the number of a trial, whose params are taken where none are given.

    Raises:
        InvalidInput: the params are no point of the space; nothing is stored.
    """
    space = stored_space(open_inputs(stored.spec), stored.study)
    wanted = {name: value for text in given for name, value in _params(text).items()}
    whole = {**_like(stored, space, like), **wanted}
    if like is not None:  # with another choice, params of the old one mean nothing
        active = set(space.active(whole))
        whole = {name: value for name, value in whole.items() if name in active or name in wanted}
    whole = {name: _as_float(value) for name, value in whole.items()}
    check_point(space, whole)
    point = {name: whole[name] for name in space.distributions if name in whole}
    known = _known(stored, point)
    if known is None:
        stored.study.enqueue_trial(point, user_attrs={attributes.ASKED: True})
        known = _known(stored, point)
        assert known is not None  # it has just been stored
        said = f"trial {known.number} is enqueued; {_taken_by(stored)}"
    else:
        said = f"trial {known.number} has these params already ({known.state.name})"
    name = stored.study.study_name
    return {"schema": SCHEMA, "study": name, "trial": known.number, "params": point, "message": f"{name}: {said}"}


def _params(text: str) -> dict[str, Any]:
    if text.endswith((".yaml", ".yml")):
        return read_document(Path(text), "file of params")
    found = {}
    for pair in text.split(","):
        name, equals, value = pair.partition("=")
        if not equals:
            raise InvalidInput(f"--params {text!r}: give NAME=VALUE,NAME=VALUE,… or a YAML file")
        try:
            found[name.strip()] = parse_value(value)
        except (yaml.YAMLError, ValueError) as error:
            raise InvalidInput(f"--params {pair!r}: the value cannot be read: {first_line(error)}") from None
    return found


def _as_float(value: Any) -> Any:
    """An integer as the float that the space has, where there is one; any other value as it is."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) <= sys.float_info.max else value


def _like(stored: StoredSearch, space: BoundSpace, like: str | None) -> Mapping[str, Any]:
    if like is None:
        return {}
    if like == "centre":
        return space.centre
    if like == "best":
        best = best_trials(stored.study, 1)
        if not best:
            raise InvalidInput("--like best: no trial has a score yet; give --like centre")
        return best[0].params
    trials = stored.study.get_trials(deepcopy=False)
    if not like.isdecimal() or int(like) >= len(trials):
        raise InvalidInput(f"--like {like}: give best, centre, or the number of a trial below {len(trials)}")
    return trials[int(like)].params


def _known(stored: StoredSearch, point: Mapping[str, Any]) -> FrozenTrial | None:
    for trial in stored.study.get_trials(deepcopy=False):
        fixed = trial.system_attrs.get("fixed_params") if trial.state is TrialState.WAITING else trial.params
        if fixed == point and trial.state is not TrialState.FAIL:
            return trial
    return None


def _taken_by(stored: StoredSearch) -> str:
    holder = holder_of(stored.spec.storage_url, stored.study.study_name, storage=stored.storage)
    content = stored.study.user_attrs.get(attributes.STATUS)
    status = None if content is None else status_of(content)
    larger = "with a larger budget: `evomerge run --trials N`"
    if holder is None or holder.alive == "no":
        more = f", {larger}" if status is not None and status.state == "finished" else ""
        return f"no controller is alive: the next run takes it{more}"
    if status is not None and status.has_ended_under(holder.host, holder.process):
        return f"the search is over: the next run takes it, {larger}"
    return f"the controller with process {holder.process} on {holder.host} takes it next"
