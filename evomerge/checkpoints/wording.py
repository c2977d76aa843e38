"""How messages name many things: the first few and the count."""

from __future__ import annotations

from collections.abc import Collection


def some(names: Collection[str], shown: int = 3) -> str:
    """The first few names, and how many more there are."""
    first = ", ".join(list(names)[:shown])
    return first if len(names) <= shown else f"{first} and {len(names) - shown} more"
