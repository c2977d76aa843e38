"""The command line: the commands gathered, and the exit code of each."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from evomerge import __version__
from evomerge.commands.collecting import gc
from evomerge.commands.controls import cancel, pause, resume, stop, try_params
from evomerge.commands.copying import study_app
from evomerge.commands.doctoring import doctor
from evomerge.commands.exhausted_memory import out_of_memory
from evomerge.commands.exporting import export
from evomerge.commands.importing import mergekit_evolve
from evomerge.commands.initialising import init
from evomerge.commands.inventories import evaluators, methods, reference, spaces
from evomerge.commands.logs import logs
from evomerge.commands.looking import dashboard, leaderboard, list_studies, status
from evomerge.commands.merging import import_app, merge
from evomerge.commands.models import distances, extend_vocabulary, merge_experts
from evomerge.commands.outputs import unwritable
from evomerge.commands.reporting import report
from evomerge.commands.searching import baseline, check, run
from evomerge.errors import EvomergeError, Interrupted, InvalidInput

if TYPE_CHECKING:
    from evomerge.report.terminal import Terminal

# In the order of the help page.
COMMANDS: dict[str, Callable[..., None]] = {
    "init": init,
    "check": check,
    "doctor": doctor,
    "run": run,
    "status": status,
    "list": list_studies,
    "logs": logs,
    "pause": pause,
    "resume": resume,
    "stop": stop,
    "cancel": cancel,
    "try": try_params,
    "leaderboard": leaderboard,
    "report": report,
    "baseline": baseline,
    "export": export,
    "gc": gc,
    "dashboard": dashboard,
    "spaces": spaces,
    "evaluators": evaluators,
    "methods": methods,
    "reference": reference,
    "merge": merge,
    "distances": distances,
    "merge-experts": merge_experts,
    "extend-vocabulary": extend_vocabulary,
}

COMPLETION = "_EVOMERGE_COMPLETE"  # environment variable by which a shell asks for completions
KEYBOARD_INTERRUPT = 130  # that typer returns in the place of the exception

app = typer.Typer(
    name="evomerge",
    help="Search the merges of a base model and its fine-tunes for one that is good at everything they are good at.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(study_app, name="study")
import_app.command("mergekit-evolve")(mergekit_evolve)
app.add_typer(import_app, name="import")


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Run a command and end the process with the exit code of the contract."""
    from evomerge.report.process import run_process

    run_process(lambda: run_command, arguments)


def run_command(arguments: list[str] | None = None, terminal: Terminal | None = None) -> int:
    """Run a command; its exit code: 0 done, 1 our bug, 2 invalid input, and the others of `evomerge.errors`.

    Args:
        terminal: where it prints; without one the streams of this process, which then everybody may write to.
    """
    from evomerge.report.terminal import Terminal

    terminal = terminal or Terminal()
    try:
        code = app(args=arguments, prog_name="evomerge", complete_var=COMPLETION, standalone_mode=False, obj=terminal)
        if code == KEYBOARD_INTERRUPT:
            raise KeyboardInterrupt
    except typer.TyperException as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        if message:  # empty where the help was shown instead
            terminal.tell(f"error: {message}")
        return 2
    except (typer.Abort, KeyboardInterrupt):
        terminal.tell("interrupted; run the same command again to go on")
        return Interrupted.exit_code
    except SystemExit as error:
        if _is_about_completion(arguments):
            return error.code if isinstance(error.code, int) else 0
        place = terminal.keep(traceback.format_exc())
        terminal.tell(f"error: code of a task, an evaluator or a model called sys.exit({error.code!r}); see {place}")
        return InvalidInput.exit_code
    except EvomergeError as error:
        log = f" (what other programs printed is in {terminal.log})" if terminal.log is not None else ""
        terminal.tell(f"error: {error}{log}")
        _tell_notes(terminal, error)
        return error.exit_code
    except Exception as error:
        from evomerge.storage.patience import full_disk

        known = full_disk(error) or out_of_memory(error, arguments) or unwritable(error, arguments)
        if known is not None:
            terminal.tell(f"error: {known}")
            return known.exit_code
        place = terminal.keep(traceback.format_exc())
        terminal.tell(f"error: this is a bug in evomerge: {type(error).__name__}: {error}; see {place}")
        _tell_notes(terminal, error)
        return 1
    return code if isinstance(code, int) else 0


def _is_about_completion(arguments: list[str] | None) -> bool:
    """Whether typer itself answers, and ends with SystemExit: completions for a shell, or their installation."""
    given = sys.argv[1:] if arguments is None else arguments
    return COMPLETION in os.environ or given[:1] in (["--install-completion"], ["--show-completion"])


def _tell_notes(terminal: Terminal, error: BaseException) -> None:
    """Print what went wrong after an error, while everything was closed: below the reason, and never in its place."""
    for note in getattr(error, "__notes__", ()):
        terminal.tell(note)


if __name__ == "__main__":
    main()
