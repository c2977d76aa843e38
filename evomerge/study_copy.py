"""Copies of a search, with its siblings and artifacts, in another storage, where it goes on as it would have here."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from rich.text import Text

from evomerge.errors import InvalidInput, unknown_name
from evomerge.leases.lock import hold
from evomerge.messages import counted, listed
from evomerge.object_store.artifact_folder import ArtifactFolder, is_inside
from evomerge.object_store.object_url import is_object_url
from evomerge.spec import SearchSpec, spec_from_json
from evomerge.storage import attributes
from evomerge.storage.attributes import read_text, write_text
from evomerge.storage.opening import open_storage, release
from evomerge.storage.transfer import StudyContent, check_same, read_study, write_study
from evomerge.storage.url import local_file, redact, resolve_url
from evomerge.study.stored_search import artifacts_folder, artifacts_url
from evomerge.whole_files import pieces, write_whole

SCHEMA = 1
UNFINISHED = "copying"  # a sibling that a copy has until it is whole
_ARTIFACT = "artifacts:"  # Optuna's: begins the keys of system attributes that name an artifact


def copy_search(from_url: str, to_url: str, name: str | None = None) -> dict[str, Any]:
    """Copy a search to another storage: trials with numbers, states, params, values, times and attributes, siblings,
    and artifacts where the copy looks for them in another folder.

    Neither storage may have a controller meanwhile. A copy that was cut short is begun again by the next one.

    Args:
        name: of the study; the only search of the storage without it.

    Raises:
        InvalidInput: there is no such study, or the other storage has one of its name.
        StudyHeld: a controller writes to one of the storages.
    """
    from_url, to_url = resolve_url(from_url), resolve_url(to_url)
    file = local_file(from_url)
    if file is not None and not file.exists():
        raise InvalidInput(f"there is no storage {redact(from_url)}: the file does not exist")
    with _opened(from_url) as source, _opened(to_url) as target:
        name = _chosen(source, name, from_url)
        _refuse_existing(target, name, to_url)
        directions = [each.name.lower() for each in _directions(source, name)]
        with _marked(target, name, to_url), hold(from_url, name, directions=directions):
            contents = [read_study(source, each) for each in _family(source, name)]
            moved = _moved(contents[0], from_url, to_url)
            here, there = (artifacts_folder(_spec(*each)) for each in ((contents[0], from_url), (moved, to_url)))
            shared = here.resolve() == there.resolve()
            names, elsewhere = ([], []) if shared else _artifacts(here, contents)
            _copy_files(names, here, there)
            contents[0] = moved
            with hold(to_url, name, directions=directions):
                _write_checked(target, contents, to_url)
    return {
        "schema": SCHEMA,
        "study": name,
        "from": redact(from_url),
        "to": redact(to_url),
        "trials": {content.name: len(content.trials) for content in contents},
        "artifacts": str(ArtifactFolder(there)),
        "copied": None if shared else len(names),
        "left_out": elsewhere,
    }


def copy_text(document: dict[str, Any]) -> Text:
    """The same for a person."""
    rows = [f"{counted(count, 'trial')} of {name}" for name, count in document["trials"].items()]
    files = (
        f"copied {counted(document['copied'], 'file')} to {document['artifacts']}"
        if document["copied"] is not None
        else f"the artifacts stay in {document['artifacts']}, which both studies refer to"
    )
    if document["left_out"]:
        files += f"\nleft out, as they are outside of the folder of artifacts: {listed(document['left_out'])}"
    return Text(f"copied {listed(rows)} to {document['to']}\n{files}")


@contextmanager
def _opened(url: str) -> Iterator[BaseStorage]:
    storage = open_storage(url, single_writer=True)
    try:
        yield storage
    finally:
        release(storage)


def _directions(storage: BaseStorage, name: str) -> list[StudyDirection]:
    return storage.get_study_directions(storage.get_study_id_from_name(name))


def _chosen(source: BaseStorage, name: str | None, url: str) -> str:
    """The name of the study to copy."""
    searches = [each.study_name for each in source.get_all_studies() if attributes.SCHEMA in each.user_attrs]
    if name is None and len(searches) == 1:
        return searches[0]
    if name is None:
        names = f"it has {', '.join(sorted(searches))}" if searches else "it has none of evomerge"
        raise InvalidInput(f"name the study of {redact(url)} with --study; {names}")
    if name not in searches:
        raise unknown_name("study", name, searches)
    return name


def _family(storage: BaseStorage, name: str) -> list[str]:
    """The study and its siblings, as far as they are there."""
    names = [each.study_name for each in storage.get_all_studies()]
    return sorted(each for each in names if each == name or each.startswith(f"{name}/"))


def _write_checked(target: BaseStorage, contents: list[StudyContent], url: str) -> None:
    """Write a search, the first of `contents`, and its siblings; its schema once all else is found to be there.

    Until then it is no search to anybody, and from then on it is one whose trials nobody may delete.
    """
    schema = contents[0].user_attrs[attributes.SCHEMA]
    attrs = {key: value for key, value in contents[0].user_attrs.items() if key != attributes.SCHEMA}
    contents = [replace(contents[0], user_attrs=attrs), *contents[1:]]
    for content in contents:
        write_study(target, content)
    with _opened(url) as written:  # what the storage has, not what we remember
        for content in contents:
            check_same(content, read_study(written, content.name))
    target.set_study_user_attr(target.get_study_id_from_name(contents[0].name), attributes.SCHEMA, schema)


def _refuse_existing(target: BaseStorage, name: str, url: str) -> None:
    """Refuse a storage that has the study; what an unfinished copy has left there is deleted.

    Raises:
        InvalidInput: the storage has it.
        StudyHeld: a copy is being made, or a controller runs what an earlier one has left.
    """
    family = _family(target, name)
    if f"{name}/{UNFINISHED}" in family:
        _clear(target, name, url)
        family = _family(target, name)
    if family:
        raise InvalidInput(
            f"{redact(url)} has a study {family[0]!r} already; a copy never adds to one: give another storage"
        )


@contextmanager
def _marked(target: BaseStorage, name: str, url: str) -> Iterator[None]:
    """A sibling that tells an unfinished copy from a study, until the copy is whole. One that fails leaves nothing."""
    target.create_new_study([StudyDirection.MAXIMIZE], f"{name}/{UNFINISHED}")
    try:
        yield
    except BaseException:
        with suppress(Exception):  # the next copy does it
            _clear(target, name, url)
        raise
    _unmark(target, name)


def _clear(target: BaseStorage, name: str, url: str) -> None:
    """Delete what an unfinished copy has left. Of a study that is whole, and may have been run since, only the mark.

    Raises:
        StudyHeld: somebody writes to it.
    """
    if _is_whole(target, name):
        _unmark(target, name)
        return
    with hold(url, name):
        if not _is_whole(target, name):  # nor has become it before we held it
            _delete(target, name)


def _is_whole(storage: BaseStorage, name: str) -> bool:
    try:
        return attributes.SCHEMA in storage.get_study_user_attrs(storage.get_study_id_from_name(name))
    except KeyError:
        return False


def _unmark(storage: BaseStorage, name: str) -> None:
    with suppress(KeyError):  # another copy has found the study whole and has done it
        storage.delete_study(storage.get_study_id_from_name(f"{name}/{UNFINISHED}"))


def _delete(storage: BaseStorage, name: str) -> None:
    """Delete a study and its siblings, the mark of an unfinished copy last."""
    for each in sorted(_family(storage, name), key=lambda each: each.endswith(f"/{UNFINISHED}")):
        storage.delete_study(storage.get_study_id_from_name(each))


def _artifacts(folder: Path, contents: list[StudyContent]) -> tuple[list[str], list[str]]:
    """The files of a search in a folder that others may share: those that its trials name, and all by content.

    Returns:
        The names of those that are in the folder, and of those that are elsewhere, by `..` or a link.
    """
    keys = (
        key
        for content in contents
        for attrs in (content.system_attrs, *(trial.system_attrs for trial in content.trials))
        for key in attrs
    )
    named = {key.removeprefix(_ARTIFACT) for key in keys if key.startswith(_ARTIFACT)}
    by_content = {str(path.relative_to(folder)) for path in folder.glob("*/**/*")}
    names = {name for name in named | by_content if (folder / name).is_file()}
    inside = {name for name in names if is_inside(folder, name)}
    return sorted(inside), sorted(names - inside)


def _copy_files(names: list[str], here: Path, there: Path) -> None:
    """Copy files, each in one step: other searches may read those of the same content in the folder meanwhile."""
    for name in names:
        file, place = here / name, there / name
        if not place.is_file() or not filecmp.cmp(file, place, shallow=False):
            write_whole(place, pieces(file))
            shutil.copystat(file, place)


def _spec(search: StudyContent, url: str) -> SearchSpec:
    text = read_text(search, attributes.SPEC)
    if text is None:
        raise InvalidInput(f"study {search.name!r} was interrupted while it was made; run it first")
    return spec_from_json(text).model_copy(update={"storage": url})


def _moved(search: StudyContent, from_url: str, to_url: str) -> StudyContent:
    """The study as it is stored elsewhere: nobody holds it, and its spec names the folder of artifacts.

    Beside a file they lie with it, unless the user has chosen a folder; a study on a server names the folder anyway,
    and an object store stays the place of both.
    """
    spec = _spec(search, from_url)
    chosen = spec.artifacts if local_file(from_url) is not None else None
    if local_file(to_url) is None or (spec.artifacts is not None and is_object_url(spec.artifacts)):
        chosen = artifacts_url(spec)
    moved = _NewAttributes(
        (key, value)
        for key, value in search.user_attrs.items()
        if key not in (attributes.WRITER, attributes.SPEC) and not key.startswith(f"{attributes.SPEC}:")
    )
    write_text(moved, attributes.SPEC, spec.model_copy(update={"storage": to_url, "artifacts": chosen}).to_json())
    return replace(search, user_attrs=moved)


class _NewAttributes(dict[str, Any]):
    """Attributes of a study that is not stored yet."""

    def set_user_attr(self, key: str, value: Any) -> None:
        self[key] = value
