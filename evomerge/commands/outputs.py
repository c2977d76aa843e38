"""Places that a command was told to write to, and errors that are theirs and no bugs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from evomerge.errors import InvalidInput

_OPTIONS: Final = ("--out", "--png")


def unwritable(error: Exception, arguments: Sequence[str] | None) -> InvalidInput | None:
    """The error for a command that cannot write where an option says; None for an error of another kind.

    Args:
        arguments: of the command line; those of this process without them.
    """
    if not isinstance(error, OSError) or not isinstance(error.filename, str | bytes):
        return None
    at = Path(os.fsdecode(error.filename)).absolute()
    for option, place in _places(sys.argv[1:] if arguments is None else arguments):
        if _is_on_the_way(at, place.absolute()):
            return InvalidInput(f"{place} cannot be written: {_reason(error, place)}; give another {option}")
    return None


def _places(arguments: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for place, word in enumerate(arguments):
        option, equals, value = word.partition("=")
        if option in _OPTIONS:
            yield option, Path(value if equals else next(iter(arguments[place + 1 :]), ""))


def _is_on_the_way(at: Path, place: Path) -> bool:
    """Whether a path is the place, above it, inside it, or the file beside it that takes its place when it is whole."""
    beside = at.parent == place.parent and at.name.startswith(f".{place.name}.")
    return beside or at.is_relative_to(place) or place.is_relative_to(at)


def _reason(error: OSError, place: Path) -> str:
    if isinstance(error, FileExistsError | NotADirectoryError):
        files = (each for each in (place, *place.parents) if each.exists() and not each.is_dir())
        if (file := next(files, None)) is not None:
            return f"{file} is a file, not a folder"
    return f"{error.strerror or type(error).__name__} ({os.fsdecode(error.filename)})"
