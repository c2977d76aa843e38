"""The YAML front matter of a model's README.md, which holds its licence and its data sets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_LIMIT = 100_000  # characters; front matter comes first


def read_front_matter(directory: Path) -> dict[str, Any]:
    """The front matter of README.md; nothing where there is none.

    A README that cannot be read is not an error: the weights do not depend on it.
    """
    path = directory / "README.md"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        found = _FRONT_MATTER.match(file.read(_LIMIT))
    if not found:
        return {}
    try:
        content = yaml.safe_load(found.group(1))
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def strings_of(value: Any) -> tuple[str, ...]:
    """The strings of a field that holds one of them or a list."""
    values = value if isinstance(value, list) else [value]
    return tuple(text for each in values if isinstance(each, str) and (text := each.strip()))
