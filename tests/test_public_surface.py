"""docs/library.md names what users may rely on; the package exports exactly that."""

from __future__ import annotations

import importlib
import inspect
import re
import tomllib
from pathlib import Path

import pytest

from evomerge.storage import attributes

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")


def table(heading: str) -> dict[str, list[str]]:
    """First cell -> the words in backticks of the second one, of the table below a heading."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| (.*) \|$", section, re.MULTILINE)
    return {first: re.findall(r"`([^`]+)`", second) for first, second in rows}


@pytest.mark.parametrize("module", table("Python"))
def test_a_public_module_exports_what_the_page_lists(module: str) -> None:
    assert sorted(importlib.import_module(module).__all__) == sorted(table("Python")[module])


@pytest.mark.parametrize("module", table("Python"))
def test_what_is_exported_is_there_and_documented(module: str) -> None:
    found = importlib.import_module(module)
    values = {name: getattr(found, name) for name in found.__all__}
    documented = {name for name, value in values.items() if inspect.isroutine(value) or inspect.isclass(value)}
    assert [name for name in documented if not inspect.getdoc(values[name])] == []


def test_the_entry_points_are_those_of_the_page() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    assert list(groups) == list(table("Entry points"))


def test_the_format_of_a_study_lists_every_attribute() -> None:
    text = (ROOT / "docs" / "study_format.md").read_text(encoding="utf-8")
    keys = {value for value in vars(attributes).values() if isinstance(value, str) and value.startswith("evomerge:")}
    assert set(re.findall(r"^\| `(evomerge:\w+)`", text, re.MULTILINE)) == keys - {attributes.PREFIX}
