"""Commands that steer a search that runs elsewhere, through its storage: pause, resume, stop, cancel, try."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evomerge.commands.options import Json, SpecPath, Storage, Study, print_document, stored_of, terminal_of

if TYPE_CHECKING:
    from evomerge.remote_control import Steered
    from evomerge.report.terminal import Terminal
    from evomerge.study.stored_search import StoredSearch


def pause(
    context: typer.Context, spec: SpecPath = None, storage: Storage = None, study: Study = None, json_: Json = False
) -> None:
    """Let the search propose nothing more until `evomerge resume`; candidates that are being scored end.

    Workers stay, with their models loaded, and the hours of the budget do not pass. A run that is started meanwhile is
    paused too.
    """
    terminal = terminal_of(context)
    from evomerge.remote_control import pause

    _steer(terminal, pause, spec, storage, study=study, as_json=json_)


def resume(
    context: typer.Context, spec: SpecPath = None, storage: Storage = None, study: Study = None, json_: Json = False
) -> None:
    """Let a paused search go on."""
    terminal = terminal_of(context)
    from evomerge.remote_control import resume

    _steer(terminal, resume, spec, storage, study=study, as_json=json_)


def stop(
    context: typer.Context, spec: SpecPath = None, storage: Storage = None, study: Study = None, json_: Json = False
) -> None:
    """End the run as SIGTERM does: exit code 3, and the same command goes on."""
    terminal = terminal_of(context)
    from evomerge.remote_control import stop

    _steer(terminal, stop, spec, storage, study=study, as_json=json_)


def cancel(
    context: typer.Context,
    trial: Annotated[int, typer.Option(min=0, help="Number of the trial.")],
    spec: SpecPath = None,
    storage: Storage = None,
    study: Study = None,
    json_: Json = False,
) -> None:
    """End a trial that is running or waits: it fails, and the search goes on with others."""
    terminal = terminal_of(context)
    from evomerge.remote_control import cancel

    _steer(terminal, lambda stored: cancel(stored, trial), spec, storage, study=study, as_json=json_)


def try_params(
    context: typer.Context,
    params: Annotated[list[str], typer.Option(help="NAME=VALUE,… or a YAML file; repeatable.")],
    spec: SpecPath = None,
    like: Annotated[str | None, typer.Option(help="Take the others from: best, centre, or a trial's number.")] = None,
    storage: Storage = None,
    study: Study = None,
    json_: Json = False,
) -> None:
    """Have a point of the search space scored next; it counts towards the budget, and the sampler learns from it."""
    terminal = terminal_of(context)
    from rich.text import Text

    from evomerge.asked_trial import ask_for_trial

    document = ask_for_trial(stored_of(terminal, spec, storage, study), params, like)
    print_document(terminal, document, json_, lambda content: Text(content["message"]))


def _steer(
    terminal: Terminal,
    ask: Callable[[StoredSearch], Steered],
    spec: Path | None,
    storage: str | None,
    *,
    study: str | None,
    as_json: bool,
) -> None:
    from rich.text import Text

    document = ask(stored_of(terminal, spec, storage, study)).document()
    print_document(terminal, document, as_json, lambda content: Text(content["message"]))
