"""The options by which an export goes to the Hugging Face hub, and the push behind them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evomerge.errors import InvalidInput

if TYPE_CHECKING:
    from evomerge.hub import HubRepository
    from evomerge.report.terminal import Terminal

Push = Annotated[
    str | None,
    typer.Option(
        metavar="OWNER/NAME",
        help="Upload it to the Hugging Face hub as well; the token is $HF_TOKEN or that of `hf auth login`.",
    ),
]
Private = Annotated[bool, typer.Option("--private", help="With --push: make a new repository private.")]


def checked_repository(push: str | None, *, private: bool) -> HubRepository | None:
    """The repository that an export goes to, found to take it; None where none was asked for."""
    if push is None:
        if private:
            raise InvalidInput("--private is for a repository of the hub; add --push OWNER/NAME, or leave it out")
        return None
    from evomerge.hub import HubRepository

    repository = HubRepository(push, private=private)
    repository.check()
    return repository


def pushed(terminal: Terminal, repository: HubRepository | None, document: dict[str, Any]) -> dict[str, Any]:
    """The document of an export, pushed where a repository is given: `pushed` then says where to."""
    if repository is None:
        return document
    from evomerge.licenses import name_problems

    licenses = document["licenses"]
    for problem in (*licenses["problems"], *name_problems(licenses["name_begins"], repository.id)):
        terminal.tell(f"note: {problem}")
    made = repository.push(Path(document["out"]), terminal.tell)
    return {**document, "pushed": asdict(made)}


def with_address(text: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    """The text of an export, with the address of a pushed one below it."""

    def extended(document: dict[str, Any]) -> Any:
        found = text(document)
        if "pushed" in document:
            found.append(f"\npushed to {document['pushed']['url']} (commit {document['pushed']['commit'][:12]})")
        return found

    return extended
