"""The reference of all settings as Markdown, and one section of it for a terminal or as data."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from evomerge.plain_table import plain_table
from evomerge.report.setting_rows import OF_ITS_KEYS, REQUIRED, SettingRow
from evomerge.report.setting_sections import FROM_THE_SEARCH, PARTS, Section, find_section, section_rows

__all__ = ["describe_settings", "setting_page", "settings_text"]

SCHEMA = 1
_HEAD = """\
# Reference of settings

Written by `evomerge reference --markdown`; `evomerge reference NAME` shows one section.

All keys of a search.yaml, of an evaluator pack's evaluator.yaml and of a search space's YAML file, and all settings of
samplers and baselines. A key that is not here is refused, and the nearest one is offered. In a key, NAME is a name that
you choose, and `[]` is an entry of a list. "-": without the key there is none, or what its meaning says. Relative paths
begin at the file. Parameters and options of merge methods are in [their table](methods.md) and in `evomerge methods
NAME`; each baseline is described in the [README](../README.md#a-search).
"""
_NO_YAML = ("", REQUIRED, OF_ITS_KEYS, FROM_THE_SEARCH)
_COLUMNS = "| key | values | default | meaning |\n|---|---|---|---|\n"


def setting_page() -> str:
    """The page: each section with its example and a row for each key."""
    parts = (f"\n## {part}\n" + "".join(map(_section, sections)) for part, sections in PARTS.items())
    return _HEAD + "".join(parts)


def describe_settings(name: str | None) -> dict[str, Any]:
    """The sections, or one, as data.

    Raises:
        InvalidInput: there is no such section.
    """
    chosen = [find_section(name)] if name else [each for sections in PARTS.values() for each in sections]
    return {"schema": SCHEMA, "sections": list(map(_entry, chosen))}


def settings_text(document: dict[str, Any]) -> RenderableType:
    """A table of all sections with what each describes, or everything about one."""
    sections = document["sections"]
    if len(sections) == 1:
        return _one(sections[0])
    table = plain_table()
    table.add_column("section", no_wrap=True)
    table.add_column("what it describes")
    for section in sections:
        first, _, _ = _plain(section["description"]).partition(". ")
        table.add_row(Text(section["name"]), Text(first.removesuffix(".")))
    return Group(table, Text("evomerge reference SECTION shows its keys, with values and defaults."))


def _entry(section: Section) -> dict[str, Any]:
    return {
        "name": section.name,
        "description": " ".join(section.summary.split()),
        "example": section.example,
        "settings": [asdict(row) for row in section_rows(section)],
    }


def _one(section: dict[str, Any]) -> Group:
    table = plain_table()
    for column in ("key", "values", "default", "meaning"):
        table.add_column(column)
    for row in section["settings"]:
        values = _plain(row["values"]) + (f" (see {row['section']})" if row["section"] else "")
        table.add_row(Text(row["key"]), Text(values), Text(row["default"] or "-"), Text(_plain(row["meaning"])))
    name, example = Text(section["name"], style="bold"), Text(f"\n{section['example']}")
    return Group(name, Text(_plain(section["description"])), example, table)


def _plain(words: str) -> str:
    return words.replace("`", "")


def _section(section: Section) -> str:
    rows = "".join(map(_row, section_rows(section)))
    return f"\n### {section.name}\n\n{_text(section.summary)}\n\n```yaml\n{section.example}```\n\n{_COLUMNS}{rows}"


def _row(row: SettingRow) -> str:
    values = _text(row.values) + (f": [{row.section}](#{row.section.replace('.', '')})" if row.section else "")
    default = row.default if row.default in _NO_YAML else f"`{row.default}`"
    return f"| `{row.key}` | {values} | {_cell(default) or '-'} | {_text(row.meaning)} |\n"


def _text(words: str) -> str:
    """Words with what Markdown would read as emphasis or HTML, but for code."""
    parts = re.split(r"(`[^`]*`)", _cell(words))
    return "".join(part if part.startswith("`") else re.sub(r"([*_<])", r"\\\1", part) for part in parts)


def _cell(words: str) -> str:
    return words.replace("|", "\\|")
