"""Search spaces as files: shipped ones by name, others by path."""

from __future__ import annotations

from pathlib import Path

from evomerge.documents import read_document, validate
from evomerge.errors import unknown_name
from evomerge.shipped import shipped_folder
from evomerge.spaces.space import SearchSpace
from evomerge.spaces.space_checks import check_space

__all__ = ["known_spaces", "load_space"]


def load_space(name: str, directory: Path | None = None) -> SearchSpace:
    """A search space by the name of a shipped file, or by the path of a YAML file (relative to `directory`).

    Raises:
        InvalidInput: unknown name (with the nearest known), malformed file, unknown method, parameter or option,
            or a range outside of what the method allows.
    """
    path = _find(name, directory)
    space = validate(SearchSpace, read_document(path, "search space"), f"search space {path.name!r}")
    check_space(space)
    return space


def known_spaces() -> list[str]:
    """The names of the shipped search spaces."""
    return sorted(path.stem for path in shipped_folder("search_spaces").glob("*.yaml"))


def _find(name: str, directory: Path | None) -> Path:
    if name.endswith((".yaml", ".yml")):
        return (directory or Path()) / name
    if name not in known_spaces():
        raise unknown_name("search space", name, known_spaces())
    return shipped_folder("search_spaces") / f"{name}.yaml"
