"""The program `evomerge`, which can be interrupted from its first moment on: nothing is imported before that."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from evomerge.report.process import run_process

if TYPE_CHECKING:
    from evomerge.report.terminal import Terminal


def main(arguments: list[str] | None = None) -> None:
    """Run a command and end the process with the exit code of the contract."""
    run_process(_load, arguments)


def _load() -> Callable[[list[str] | None, Terminal], int]:
    from evomerge.cli import run_command

    return run_command


if __name__ == "__main__":
    main()
