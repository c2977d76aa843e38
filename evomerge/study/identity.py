"""The identity of a study: settled when it is created, stored in it, and compared with the spec at each resumption."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import optuna

from evomerge.errors import InvalidInput, OtherSpec
from evomerge.forms import parse_json, reading
from evomerge.messages import some
from evomerge.spec.search_spec import BESIDE_WEIGHTS
from evomerge.storage import attributes
from evomerge.storage.attributes import read_text, write_text
from evomerge.storage.opening import in_transaction
from evomerge.storage.optuna_internals import storage_of
from evomerge.study.document_difference import difference
from evomerge.study.race_defaults import RaceDefaults, read_race_defaults

SCHEMA = 1
LATER = (BESIDE_WEIGHTS,)  # keys of an identity that earlier releases did not store
PACKAGES = ("evomerge", "torch", "transformers", "lm_eval", "optuna", "cma", "numpy", "ray")


@dataclass(frozen=True, kw_only=True)
class StudyIdentity:
    """Values that are settled when a study is created, and read from it from then on.

    Attributes:
        spec: the spec in JSON, without the storage URL.
        identity: the part of the spec that may not change, see `SearchSpec.identity`.
        split: the item split in JSON.
        batch_size: the evaluator's batch size.
        popsize: the sampler's population size, None for samplers without one.
        race: settings of a race that the spec may leave open.
    """

    spec: str
    identity: Mapping[str, Any]
    split: str
    batch_size: int | None
    popsize: int | None
    race: RaceDefaults


def create_or_verify(study: optuna.Study, identity: StudyIdentity) -> StudyIdentity:
    """Store the identity in a new study, or compare it with the one that is there and return that.

    The schema number is written last: a study without it was interrupted while it was made, and is made again. So is
    one in which nothing has been scored: a worker found its input invalid, and the user has corrected it.

    Raises:
        OtherSpec: the study was made with another identity; the message shows what differs.
        InvalidInput: the study is not ours, or was made by a newer evomerge.
    """
    schema = study.user_attrs.get(attributes.SCHEMA)
    if schema is None or _is_unused(study):
        if study.get_trials(deepcopy=False):
            raise InvalidInput(f"study {study.study_name!r} has trials that evomerge did not make; choose another name")
        in_transaction(storage_of(study), lambda: _write(study, identity))
        return identity
    if schema > SCHEMA:
        raise InvalidInput(
            f"study {study.study_name!r} has schema {schema}, this evomerge reads up to {SCHEMA}; update it"
        )
    # The spec is not read: it may have been torn by a crash, and is written again below.
    stored = replace(_settled(study), spec=identity.spec)
    changes = difference(stored.identity, _comparable(identity, stored))
    if changes:
        raise OtherSpec(
            f"study {study.study_name!r} was made with another spec: {some(changes, 5, '; ')}. "
            "Give the search a new name, or take the change back"
        )
    in_transaction(storage_of(study), lambda: write_text(study, attributes.SPEC, identity.spec))
    return stored


def _comparable(identity: StudyIdentity, stored: StudyIdentity) -> dict[str, Any]:
    """The identity as it is stored, without keys that a study of an earlier release does not have."""
    content: dict[str, Any] = json.loads(json.dumps(identity.identity))
    return {key: value for key, value in content.items() if key in stored.identity or key not in LATER}


def _is_unused(study: optuna.Study) -> bool:
    """Whether no worker has run the model yet."""
    ran = study.user_attrs.get(attributes.BATCH_SIZE) is not None or attributes.ONE_BY_ONE in study.user_attrs
    return not ran and not study.get_trials(deepcopy=False)


def read_identity(study: optuna.Study) -> StudyIdentity:
    """The identity of a study that evomerge made."""
    return replace(_settled(study), spec=_text(study, attributes.SPEC))


def _settled(study: optuna.Study) -> StudyIdentity:
    """The identity without the spec, the only part that is ever written again."""
    with reading(f"the identity of study {study.study_name!r}"):
        identity = parse_json(_text(study, attributes.IDENTITY))
    return StudyIdentity(
        spec="",
        identity=identity,
        split=_text(study, attributes.SPLIT),
        batch_size=study.user_attrs.get(attributes.BATCH_SIZE),
        popsize=study.user_attrs.get(attributes.POPSIZE),
        race=read_race_defaults(study),
    )


def _text(study: optuna.Study, key: str) -> str:
    text = read_text(study, key)
    if text is None:
        raise InvalidInput(f"study {study.study_name!r} was not made by evomerge: attribute {key!r} is missing")
    return text


def changed_versions(study: optuna.Study) -> dict[str, tuple[str, str]]:
    """Package -> (version that made the study, version now), where they differ."""
    made = study.user_attrs.get(attributes.VERSIONS, {})
    now = versions()
    return {name: (old, now.get(name, "none")) for name, old in made.items() if now.get(name, "none") != old}


def versions() -> dict[str, str]:
    """The installed versions of the packages that a score may depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def _write(study: optuna.Study, identity: StudyIdentity) -> None:
    write_text(study, attributes.SPEC, identity.spec)
    write_text(study, attributes.IDENTITY, json.dumps(identity.identity))
    write_text(study, attributes.SPLIT, identity.split)
    study.set_user_attr(attributes.VERSIONS, versions())
    study.set_user_attr(attributes.BATCH_SIZE, identity.batch_size)
    study.set_user_attr(attributes.POPSIZE, identity.popsize)
    study.set_user_attr(attributes.RACE, identity.race.model_dump(mode="json"))
    study.set_user_attr(attributes.SCHEMA, SCHEMA)
