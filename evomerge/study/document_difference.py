"""Differences of two documents, leaf by leaf."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def difference(stored: Any, given: Any, path: str = "") -> list[str]:
    """One line per leaf of two documents that differs."""
    if isinstance(stored, Mapping) and isinstance(given, Mapping):
        lines = []
        for key in sorted({*stored, *given}):
            lines += difference(stored.get(key), given.get(key), f"{path}.{key}" if path else str(key))
        return lines
    return [] if stored == given else [f"{path} was {_short(stored)}, now {_short(given)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
