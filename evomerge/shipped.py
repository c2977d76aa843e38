"""Locates the folders that ship with evomerge: inside the installed package, or beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

from evomerge.errors import InvalidInput


def shipped_folder(name: str) -> Path:
    """The folder `search_spaces`, `evaluators` or `examples` that belongs to this installation."""
    package = Path(__file__).resolve().parent
    for folder in (package / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise InvalidInput(f"this installation of evomerge has no folder {name!r} beside {package}; install it again")
