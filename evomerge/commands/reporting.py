"""The command that writes a study as a page and as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evomerge.commands.options import Json, SpecPath, Storage, Study, print_document, stored_of, terminal_of
from evomerge.errors import InvalidInput


def report(
    context: typer.Context,
    spec: SpecPath = None,
    out: Annotated[Path | None, typer.Option(help="The HTML file; an earlier one is replaced.")] = None,
    compare: Annotated[
        Path | None, typer.Option(metavar="SPEC", help="The search.yaml of a second study, shown beside it.")
    ] = None,
    png: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write the figures as PNG files, too.")] = None,
    storage: Storage = None,
    study: Study = None,
    json_: Json = False,
) -> None:
    """One self-contained HTML page: the verdict first, leaderboard, figures. While the search runs, too."""
    if out is None and png is None:
        raise InvalidInput("give --out FILE.html for the page, --png FOLDER for its figures, or both")
    terminal = terminal_of(context)
    from rich.text import Text

    from evomerge.page.study_page import write_report

    stored = stored_of(terminal, spec, storage, study)
    second = None if compare is None else stored_of(terminal, compare, None, None)
    document = write_report(stored, out, compare=second, png=png)
    written = [*([document["page"]] if document["page"] else []), *document["pictures"]]
    print_document(terminal, document, json_, lambda _: Text("\n".join([document["headline"], *written])))
