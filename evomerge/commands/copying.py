"""Commands on whole studies: `evomerge study copy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evomerge.commands.options import Json, print_document, terminal_of

study_app = typer.Typer(help="Copy whole studies.", no_args_is_help=True)


@study_app.command()
def copy(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="FROM", help="A storage URL, or a search.yaml.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="The URL of another storage.")],
    study: Annotated[str | None, typer.Option(help="Name of the study; the only one of FROM without it.")] = None,
    json_: Json = False,
) -> None:
    """Copy a search to another storage, exactly and with all that is beside it; there it goes on as it would have here.

    No controller may write to either storage meanwhile.
    """
    terminal = terminal_of(context)
    from evomerge.spec import read_spec
    from evomerge.study_copy import copy_search, copy_text

    if source.endswith((".yaml", ".yml")):
        spec = read_spec(Path(source))
        source, study = spec.storage_url, study or spec.name
    print_document(terminal, copy_search(source, target, study), json_, copy_text)
