"""The command that looks whether a run will find what it needs."""

from __future__ import annotations

import typer

from evomerge.commands.options import Json, Ray, SpecPath, Storage, Study, print_document, spec_of, terminal_of
from evomerge.errors import InvalidInput


def doctor(
    context: typer.Context,
    spec: SpecPath = None,
    ray: Ray = None,
    storage: Storage = None,
    study: Study = None,
    json_: Json = False,
) -> None:
    """Look at Ray, its tokens and cluster, GPUs, memory, disk and storage. Exit code 2 where something is wrong."""
    terminal = terminal_of(context)
    from evomerge.doctor import doctor as examine
    from evomerge.doctor import doctor_text, what_is_wrong

    given = None if spec is None and storage is None and study is None else spec_of(spec, storage, study)
    document = examine(given, ray)
    print_document(terminal, document, json_, doctor_text)
    wrong = what_is_wrong(document)
    if wrong is not None:
        raise InvalidInput(wrong)
