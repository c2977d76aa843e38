"""Many runs of one command of another environment in one process, so that its libraries are loaded once.

`PYTHON_OF_THAT_ENVIRONMENT peer_commands.py COMMAND` reads one JSON list of arguments a line, and answers each with a
line: an empty text, or why the command failed. What the command prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from importlib.metadata import entry_points


def main() -> None:
    name = sys.argv[1]
    (found,) = entry_points(group="console_scripts", name=name)
    command = found.load()
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            fault = run(command, [name, *json.loads(line)])
        print(json.dumps(fault), flush=True)


def run(command: Callable[[], object], line: list[str]) -> str:
    """An empty text, or why a command line failed."""
    sys.argv = line
    try:
        command()
    except SystemExit as end:
        return "" if end.code in (None, 0) else f"exit code {end.code}"
    except Exception as error:  # whatever it is, it is this command's answer
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    main()
