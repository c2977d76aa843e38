"""The command that lists, and deletes, what no study names any more."""

from __future__ import annotations

from typing import Annotated

import typer

from evomerge.commands.options import Json, SpecPath, Storage, Study, stored_of, terminal_of


def gc(
    context: typer.Context,
    spec: SpecPath = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete them; refused while a run holds the study.")] = False,
    alone: Annotated[bool, typer.Option("--alone", help="No other storage has artifacts in this folder.")] = False,
    storage: Storage = None,
    study: Study = None,
    json_: Json = False,
) -> None:
    """List orphans among the artifacts: outcomes, statistics, checkpoints and temporary files that no study names."""
    terminal = terminal_of(context)
    from evomerge.orphans import collect_orphans, orphans_text

    document = collect_orphans(stored_of(terminal, spec, storage, study), delete=delete, alone=alone)
    if json_:
        terminal.document(document)
    else:
        terminal.write(orphans_text(document))
