"""The command that shows the logs of a study."""

from __future__ import annotations

from typing import Annotated

import typer

from evomerge.commands.options import Json, SpecPath, Storage, Study, stored_of, terminal_of


def logs(
    context: typer.Context,
    spec: SpecPath = None,
    trial: Annotated[int | None, typer.Option(min=0, help="Only lines about this trial.")] = None,
    lines: Annotated[int, typer.Option(min=1, help="How many lines to show, the latest ones.")] = 200,
    storage: Storage = None,
    study: Study = None,
    json_: Json = False,
) -> None:
    """The logs of a run: what workers printed and logged, why candidates failed, and the controller's events."""
    terminal = terminal_of(context)
    from evomerge.report.log_text import log_document, log_text

    stored = stored_of(terminal, spec, storage, study)
    document = log_document(stored, trial=trial, last=lines)
    if json_:
        terminal.document(document)
    else:
        terminal.write(log_text(document))
