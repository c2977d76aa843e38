"""The YAML front matter of a model's README.md, which holds its licence."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_LIMIT = 100_000  # characters; front matter comes first


def read_license(directory: Path) -> str | None:
    """The licence that README.md declares; of `license: other` its `license_name`. None where it is not declared.

    A README that cannot be read is not an error: the weights do not depend on it.
    """
    path = directory / "README.md"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        found = _FRONT_MATTER.match(file.read(_LIMIT))
    if not found:
        return None
    try:
        content = yaml.safe_load(found.group(1))
    except yaml.YAMLError:
        return None
    return _license(content) if isinstance(content, dict) else None


def _license(content: dict[str, object]) -> str | None:
    declared = content.get("license")
    if declared == "other" and isinstance(content.get("license_name"), str):
        return str(content["license_name"])
    if isinstance(declared, list):
        return ", ".join(map(str, declared)) or None
    return str(declared) if declared else None
