"""How messages say things: many names by the first few, foreign errors by their first line."""

from __future__ import annotations

from collections.abc import Collection


def some(names: Collection[str], shown: int = 3) -> str:
    """The first few names, and how many more there are."""
    first = ", ".join(list(names)[:shown])
    return first if len(names) <= shown else f"{first} and {len(names) - shown} more"


def one_line(error: Exception) -> str:
    """The first line of an error that another library raised, or its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
