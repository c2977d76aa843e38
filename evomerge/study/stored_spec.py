"""The spec that a study stores, beside the one that a user gives: commands that only read take the stored one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from evomerge.errors import InvalidInput
from evomerge.forms import is_there
from evomerge.messages import some
from evomerge.spec import SearchSpec, SourceSpec, spec_from_json
from evomerge.storage import attributes
from evomerge.storage.attributes import Readable, read_text
from evomerge.study.document_difference import difference

SHOWN = 5  # differences in a message

# Parts that may change during a search: how and by whom its baselines are built, and what they are compared on.
_OF_BASELINES = ("workers", "baselines", "verdict", "storage", "storage_patience", "allow")


class NamedStudy(Readable, Protocol):
    """A study, or what was read of its attributes."""

    @property
    def study_name(self) -> str: ...


def stored_spec(study: NamedStudy, storage: str) -> SearchSpec:
    """The spec that a study was last run with, in the storage that it was found in.

    Raises:
        InvalidInput: evomerge did not make the study, or its creation was interrupted.
    """
    if attributes.SCHEMA not in study.user_attrs:
        raise InvalidInput(
            f"study {study.study_name!r} is empty or not one of evomerge; where `evomerge run` was interrupted while "
            "it made the study, the same command goes on"
        )
    text = read_text(study, attributes.SPEC)
    if text is None:
        raise InvalidInput(f"study {study.study_name!r} was not made by evomerge: it has no spec")
    return spec_from_json(text).model_copy(update={"storage": storage})


def relocated(stored: SearchSpec, given: SearchSpec) -> SearchSpec:
    """The stored spec, with the given locations of sources, texts and packs that are no longer where they were."""
    places = {source.name: source for source in given.sources}
    sources = tuple(_relocated(source, places.get(source.name)) for source in stored.sources)
    update: dict[str, Any] = {"sources": sources}
    if _is_gone(stored.evaluator.name):
        update["evaluator"] = stored.evaluator.model_copy(update={"name": given.evaluator.name})
    return stored.model_copy(update=update)


def with_own_baselines(stored: SearchSpec, given: SearchSpec) -> SearchSpec:
    """The stored spec with the workers, baselines, calibration texts and verdict of the given one."""
    texts = {source.name: source.calibration for source in given.sources}
    sources = tuple(
        source.model_copy(update={"calibration": texts.get(source.name, source.calibration)})
        for source in stored.sources
    )
    own = {name: getattr(given, name) for name in _OF_BASELINES}
    return stored.model_copy(update={**own, "sources": sources, "artifacts": given.artifacts or stored.artifacts})


def differences(stored: SearchSpec, given: SearchSpec) -> str:
    """List in one line the differences of a given spec from the stored one; empty where there are none."""
    found = difference(_comparable(stored, given), _comparable(given, given))
    return some(found, SHOWN, "; ")


def _relocated(stored: SourceSpec, given: SourceSpec | None) -> SourceSpec:
    if given is None:
        return stored
    update: dict[str, Any] = {}
    if _is_gone(stored.location):
        update = {"location": given.location, "revision": given.revision}
    if stored.calibration is not None and stored.calibration.file is not None and _is_gone(stored.calibration.file):
        update["calibration"] = given.calibration
    return stored.model_copy(update=update)


def _is_gone(place: str) -> bool:
    return Path(place).is_absolute() and not is_there(Path(place))


def _comparable(spec: SearchSpec, given: SearchSpec) -> dict[str, Any]:
    """A spec as plain data; without the folder of artifacts where the given one leaves that to evomerge."""
    content: dict[str, Any] = json.loads(spec.to_json())
    content["sources"] = {source["name"]: source for source in content["sources"]}
    if given.artifacts is None:
        del content["artifacts"]
    return content
