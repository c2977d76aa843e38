"""Options that several commands share, and the terminal, spec and stored study that they lead to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evomerge.commands.completion import PLACES_OF_WORKERS, study_names, worker_places
from evomerge.errors import InvalidInput
from evomerge.storage.attributes import WRITER

if TYPE_CHECKING:
    from evomerge.commands.glance import Glance
    from evomerge.leases.holder import Holder
    from evomerge.report.terminal import Terminal
    from evomerge.spec import SearchSpec
    from evomerge.study.stored_search import StoredSearch
    from evomerge.study.stored_spec import NamedStudy

SpecPath = Annotated[Path | None, typer.Argument(metavar="SPEC", help="A search.yaml; or give --storage and --study.")]
Storage = Annotated[
    str | None,
    typer.Option(
        help="Optuna storage URL; wins over the spec's. env:NAME reads it from $NAME, file:PATH from the file at PATH."
    ),
]
Study = Annotated[
    str | None,
    typer.Option(
        help="With --storage and without SPEC: the study, whose stored spec serves.", autocompletion=study_names
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; the accelerator where there is one.")]
Workers = Annotated[int | None, typer.Option(help="Number of workers.")]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(["ADDRESS", *PLACES_OF_WORKERS]),
        help="Where the workers run; auto is the cluster that this machine belongs to.",
        autocompletion=worker_places,
    ),
]


def terminal_of(context: typer.Context) -> Terminal:
    """The terminal of a command, which from now on only our own lines reach."""
    from evomerge.report.terminal import Terminal

    terminal = context.ensure_object(Terminal)
    terminal.divert()
    return terminal


def spec_of(path: Path | None, storage: str | None, study: str | None) -> SearchSpec:
    """The spec that a command works on: a file, or what a study stores."""
    if path is not None and study is not None:
        raise InvalidInput("give either a SPEC, whose name is the study's, or --storage and --study; not both")
    if path is not None:
        from evomerge.spec import load_spec

        spec = load_spec(path)
        return spec if storage is None else spec.model_copy(update={"storage": storage})
    if storage is None or study is None:
        raise InvalidInput("give a SPEC (a search.yaml), or both --storage URL and --study NAME")
    from evomerge.study.stored_search import read_stored_spec

    return read_stored_spec(storage, study)


def stored_of(terminal: Terminal, path: Path | None, storage: str | None, study: str | None) -> StoredSearch:
    """The stored study that a command reads. A file only locates it; differences of the file are reported."""
    from evomerge.study.stored_search import read_search

    if path is None or study is not None:
        return read_search(spec_of(path, storage, study))
    given, unusable = _located(path, storage)
    note_other_place(terminal, path, storage, given)
    stored = read_search(given)
    note_differences(terminal, unusable or stored.differences, given.name, path)
    return stored


def glance_of(
    terminal: Terminal, path: Path | None, storage: str | None, study: str | None
) -> tuple[NamedStudy, Holder | None]:
    """The attributes of the study that a command reads, and its holder. Neither trials nor Optuna are loaded for it."""
    from evomerge.commands.glance import glance_at
    from evomerge.leases.holder import holder_of

    given, unusable = (None, "") if path is None or study is not None else _located(path, storage)
    url, name = (storage or "", study or "") if given is None else (given.storage_url, given.name)
    glance = glance_at(url, name) if url and name and (path is None or study is None) else None
    if glance is None:  # Optuna says what is wrong, or finds it after all
        stored = stored_of(terminal, path, storage, study)
        url, name = stored.spec.storage_url, stored.spec.name
        return stored.study, holder_of(url, name, storage=stored.storage)
    if path is not None and given is not None:
        note_differences(terminal, unusable or _differences(glance, given), given.name, path)
    return glance, holder_of(url, name, lease=json.dumps(glance.user_attrs.get(WRITER)))


def _located(path: Path, storage: str | None) -> tuple[SearchSpec, str]:
    """The spec of a file, and why it cannot be used as it is, although its study can be read."""
    from evomerge.spec import read_spec, resolve

    given, unusable = read_spec(path), ""
    try:
        given = resolve(given, path.resolve().parent)
    except InvalidInput as error:  # what it names is gone
        unusable = str(error)
    if storage is not None:  # of the command line: it begins in the working directory
        given = given.model_copy(update={"storage": storage})
    return given, unusable


def _differences(glance: Glance, given: SearchSpec) -> str:
    from evomerge.study.stored_spec import differences, relocated, stored_spec

    stored = relocated(stored_spec(glance, given.storage_url), given)
    if given.artifacts is not None:
        from evomerge.study.stored_search import from_anywhere

        given = from_anywhere(given)
    return differences(stored, given)


def note_other_place(terminal: Terminal, path: Path | None, storage: str | None, spec: SearchSpec) -> None:
    """Say where a study of this name is, if an earlier release put it into the working directory."""
    if path is None or storage is not None:
        return
    from evomerge.opening.former_place import study_elsewhere

    if note := study_elsewhere(path, spec):
        terminal.tell(note)


def note_differences(terminal: Terminal, differences: str, study: str, path: Path | None) -> None:
    if differences:
        terminal.tell(f"note: study {study!r} goes by its own spec, {path} differs: {differences}")


def places_of(given: Sequence[str]) -> dict[str, str]:
    """Name -> place of the models that `--source NAME=PLACE` gives."""
    places: dict[str, str] = {}
    for each in given:
        name, equals, place = each.partition("=")
        if not (name and equals and place) or name in places:
            raise InvalidInput(f"--source {each}: give NAME=PLACE, each name once")
        places[name] = place
    return places


def allowed_of(given: Sequence[str]) -> tuple[str, ...]:
    """The permissions for reading models that `--allow` gives."""
    known = ("pickle_weights", "remote_code")
    if unknown := next((each for each in given if each not in known), None):
        raise InvalidInput(f"--allow {unknown}: it can be {' or '.join(known)}")
    return tuple(given)


def device_of(given: str | None) -> str | None:
    """The device that `--device` gives."""
    if given not in (None, "cpu", "cuda"):
        raise InvalidInput(f"--device {given}: it can be cpu or cuda")
    return given


def print_document(terminal: Terminal, document: dict[str, Any], as_json: bool, renderable: Any) -> None:
    if as_json:
        terminal.document(document)
    else:
        terminal.show(renderable(document))
