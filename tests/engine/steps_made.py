"""Steps of a generator, and what it returns."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any


def steps_made(steps: Generator[Any, None, Any]) -> tuple[list[Any], Any]:
    """All that it yields, and what it returns."""
    result: list[Any] = []

    def whole() -> Generator[Any, None, None]:
        result.append((yield from steps))

    return list(whole()), result[0]
