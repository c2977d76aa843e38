"""The command that writes a merge of a study as a model directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evomerge.commands.completion import trial_names
from evomerge.commands.options import (
    Device,
    Json,
    SpecPath,
    Storage,
    Study,
    device_of,
    print_document,
    stored_of,
    terminal_of,
)
from evomerge.commands.pushing import Private, Push, checked_repository, pushed, with_address


def export(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Directory that is made; a previous export there is replaced.")],
    spec: SpecPath = None,
    trial: Annotated[
        str, typer.Option(help="A trial's number, `best`, or the name of a baseline.", autocompletion=trial_names)
    ] = "best",
    task: Annotated[str | None, typer.Option(help="Of a row that is several models: the model of this task.")] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="A LoRA adapter of the base, where the merge is one.")
    ] = False,
    device: Device = None,
    push: Push = None,
    private: Private = False,
    storage: Storage = None,
    study: Study = None,
    json_: Json = False,
) -> None:
    """Write a merge as a Hugging Face model directory, bit-identical to what was scored.

    A baseline that is several models (emr) becomes one artefact, or with --task the model of one task. With --adapter
    a merge of LoRA adapters becomes one: a weighted sum of them, or any merge in core space. With --push the result
    is uploaded to the Hugging Face hub, too; nothing is without.
    """
    terminal = terminal_of(context)
    from evomerge.errors import InvalidInput
    from evomerge.export import adapter_text, export_adapter, export_merge, export_text

    if adapter and task is not None:
        raise InvalidInput("--adapter writes one merge, and --task chooses among several models; leave one out")
    at, repository = device_of(device), checked_repository(push, private=private)
    stored, file = stored_of(terminal, spec, storage, study), spec if storage is None else None
    if adapter:
        exported, text = export_adapter(stored, trial, out, file, device=at), adapter_text
    else:
        exported, text = export_merge(stored, trial, out, file, task=task, device=at), export_text
    print_document(terminal, pushed(terminal, repository, exported), json_, with_address(text))
