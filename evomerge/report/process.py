"""The process of a command: its signals, its terminal, and the exit code that it ends with."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from evomerge.errors import Interrupted
from evomerge.loop.stop import Stop

if TYPE_CHECKING:
    from evomerge.report.terminal import Terminal


def run_process(
    load: Callable[[], Callable[[list[str] | None, Terminal], int]], arguments: list[str] | None
) -> NoReturn:
    """Run a command and end the process with its exit code.

    Args:
        load: imports what runs a command, which may take long: a signal ends that, too.
        arguments: of the command; those of the process without them.
    """
    terminal: Terminal | None = None

    def end(code: int, reason: str) -> None:
        if terminal is not None:
            terminal.last_words(f"error: {reason}")
        os._exit(code)

    stop = Stop(end)
    stop.start()
    try:
        from evomerge.report.terminal import process_terminal

        terminal = process_terminal()
        code = load()(arguments, terminal)
    except KeyboardInterrupt:
        code = Interrupted.exit_code
    stop.notice()
    gc.freeze()  # at its end Python looks for cycles in all objects, several times: two seconds with torch loaded
    sys.exit(code)
