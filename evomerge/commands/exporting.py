"""The command that writes a merge of a study as a model directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evomerge.commands.options import Json, SpecPath, Storage, Study, print_document, stored_of, terminal_of


def export(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Directory that is made; a previous export there is replaced.")],
    spec: SpecPath = None,
    trial: Annotated[str, typer.Option(help="A trial's number, `best`, or the name of a baseline.")] = "best",
    task: Annotated[str | None, typer.Option(help="Of a row that is several models: the model of this task.")] = None,
    storage: Storage = None,
    study: Study = None,
    json_: Json = False,
) -> None:
    """Write a merge as a Hugging Face model directory, bit-identical to what was scored.

    A baseline that is several models (emr) becomes one artefact, or with --task the model of one task.
    """
    terminal = terminal_of(context)
    from evomerge.export import export_merge, export_text

    stored = stored_of(terminal, spec, storage, study)
    exported = export_merge(stored, trial, out, spec if storage is None else None, task=task)
    print_document(terminal, exported, json_, export_text)
