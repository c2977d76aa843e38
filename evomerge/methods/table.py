"""The table of merge methods: all descriptions in the files of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from evomerge.errors import unknown_name
from evomerge.methods.info import MethodInfo, OptionValue

_WITHOUT_DESCRIPTIONS = {"info", "resolve", "table"}


def _descriptions() -> Iterator[MethodInfo]:
    """Every `MethodInfo` of the folder, in alphabetical order of the files and in the order of each file."""
    for module in sorted(each.name for each in iter_modules([str(Path(__file__).parent)])):
        if module not in _WITHOUT_DESCRIPTIONS:
            values = vars(import_module(f"evomerge.methods.{module}")).values()
            yield from (value for value in values if isinstance(value, MethodInfo))


METHODS: dict[str, MethodInfo] = {info.name: info for info in _descriptions()}

_SHIPPED = dict(METHODS)

MERGEKIT_SEMANTICS: dict[str, dict[str, OptionValue]] = {
    name: dict(info.mergekit.semantics) if info.mergekit else {} for name, info in METHODS.items()
}


def added_methods() -> tuple[MethodInfo, ...]:
    """The descriptions that others have put into the table of this process, under new names or known ones."""
    return tuple(info for name, info in METHODS.items() if info is not _SHIPPED.get(name))


def method_info(name: str) -> MethodInfo:
    """The description of a method.

    Raises:
        InvalidInput: there is no such method; the message offers the nearest names.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise unknown_name("merge method", str(name), METHODS)
    return METHODS[name]
