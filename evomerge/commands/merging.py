"""Commands that merge without a search: a recipe or a file of mergekit's into a model directory, or into a recipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evomerge.commands.options import Device, Json, allowed_of, device_of, places_of, print_document, terminal_of
from evomerge.commands.pushing import Private, Push, checked_repository, pushed, with_address
from evomerge.messages import counted

if TYPE_CHECKING:
    from evomerge.report.terminal import Terminal

LOG_SECONDS = 10.0  # between lines of progress where standard error is no terminal

_SOURCE = typer.Option(
    "--source", metavar="NAME=PLACE", help="Directory or hub id of a model of the recipe; repeatable."
)
_ALLOW = typer.Option(help="pickle_weights or remote_code, as in a search.yaml; repeatable.")
_SEED = typer.Option(help="Key of random masks, where the file states none (0).")


def merge(
    context: typer.Context,
    recipe: Annotated[
        Path, typer.Argument(help="A recipe.json, a recipe as YAML, an exported directory, or mergekit's YAML.")
    ],
    out: Annotated[Path, typer.Option(help="Directory that is made; a previous export there is replaced.")],
    source: Annotated[list[str] | None, _SOURCE] = None,
    seed: Annotated[int | None, _SEED] = None,
    fingerprints: Annotated[
        bool | None,
        typer.Option(
            help="Read all weights to compare or compute fingerprints; by default where the recipe has them.",
            show_default=False,
        ),
    ] = None,
    device: Device = None,
    allow: Annotated[list[str] | None, _ALLOW] = None,
    push: Push = None,
    private: Private = False,
    json_: Json = False,
) -> None:
    """Write one merge as a Hugging Face model directory, without a search.

    The weights have the bits that a search with this recipe exports. Tensors are written as they are made, so that
    memory does not grow with the models; a crash leaves nothing half-written. In a file of mergekit's everything that
    differs is said with its line, and what cannot be done is refused.
    """
    terminal = terminal_of(context)
    from evomerge.static_merges.static_merge import merge_file
    from evomerge.study.command_line import quoted_line

    places, allowed = places_of(source or ()), allowed_of(allow or ())
    repository = checked_repository(push, private=private)
    options = _options(source or (), allow or (), seed=seed, device=device, fingerprints=fingerprints)
    with _progress(terminal) as progress:
        made = merge_file(
            recipe,
            out,
            places=places,
            seed=seed,
            fingerprints=fingerprints,
            allow=allowed,
            device=device_of(device),
            reproduce=quoted_line(["merge", str(recipe), *options, "--out", str(out)]),
            tell=terminal.tell,
            progress=progress,
        )
    print_document(terminal, pushed(terminal, repository, made), json_, with_address(_merged_text))


import_app = typer.Typer(help="Read files of other programs.", no_args_is_help=True)


@import_app.callback()
def _import() -> None:
    """Read files of other programs."""


@import_app.command()
def mergekit(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="mergekit's YAML of one merge, or of several for mergekit-multi.")],
    out: Annotated[Path, typer.Option(help="The recipe: recipe.yaml, or recipe.json.")],
    source: Annotated[list[str] | None, _SOURCE] = None,
    seed: Annotated[int | None, _SEED] = None,
    allow: Annotated[list[str] | None, _ALLOW] = None,
    json_: Json = False,
) -> None:
    """Write the recipe of a mergekit file, and say line by line where mergekit's weights would differ.

    `evomerge merge` makes it; as JSON a search can start from it, as one of the `recipes` of its `warm_start`.
    """
    terminal = terminal_of(context)
    from evomerge.static_merges.static_merge import import_mergekit

    document = import_mergekit(file, out, places=places_of(source or ()), seed=seed, allow=allowed_of(allow or ()))
    for sentence in (*document["notes"], *document["warnings"]):
        terminal.tell(sentence)
    print_document(terminal, document, json_, _imported_text)


def _options(
    sources: Sequence[str], allow: Sequence[str], *, seed: int | None, device: str | None, fingerprints: bool | None
) -> list[str]:
    """The options that the bits of a merge, or its being made at all, depend on."""
    options = [*(("--source", each) for each in sources), *(("--allow", each) for each in allow)]
    options += [] if seed is None else [("--seed", str(seed))]
    options += [] if device is None else [("--device", device)]
    words = [word for option in options for word in option]
    return words if fingerprints is None else [*words, "--fingerprints" if fingerprints else "--no-fingerprints"]


@contextmanager
def _progress(terminal: Terminal) -> Iterator[Callable[[int, int, str], None]]:
    """Shows bytes written on standard error: one live line on a terminal, a line now and then elsewhere."""
    if not terminal.console.is_terminal:
        last = time.monotonic()

        def line(done: int, total: int, name: str) -> None:
            nonlocal last
            if time.monotonic() - last >= LOG_SECONDS:
                last = time.monotonic()
                terminal.tell(_progress_line(done, total, name))

        yield line
        return
    from rich.live import Live
    from rich.text import Text

    with Live(Text(), console=terminal.console, transient=True, redirect_stdout=False, redirect_stderr=False) as live:
        yield lambda done, total, name: live.update(Text(_progress_line(done, total, name), overflow="ellipsis"))


def _progress_line(done: int, total: int, name: str) -> str:
    return f"{done / 1e9:.2f} of {total / 1e9:.2f} GB written ({100 * done // max(total, 1)} %): {name}"


def _merged_text(document: dict[str, Any]) -> Any:
    from rich.text import Text

    lines = [
        f"merged {counted(document['tensors'], 'tensor')} ({document['bytes'] / 1e9:.2f} GB) into {document['out']}",
        f"recipe {document['recipe'][:12]}",
    ]
    if document["mergekit"]:
        lines.append(f"no mergekit.yaml: {document['mergekit']}")
    return Text("\n".join(lines))


def _imported_text(document: dict[str, Any]) -> Any:
    from rich.text import Text

    differences = len(document["notes"])
    said = f"{differences} differences, above" if differences else "no differences"
    return Text(f"recipe {document['recipe'][:12]}, {said}\nwritten to {document['out']}")
