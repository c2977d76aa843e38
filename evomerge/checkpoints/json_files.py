"""Reading JSON that came with a checkpoint: bounded in size, an object at the top, one kind of error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evomerge.errors import InvalidInput

SIZE_LIMIT = 100_000_000  # a vocabulary of 256 000 tokens with its merges is about 35 MB


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises InvalidInput where it is missing, too large, or not a JSON object."""
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise InvalidInput(f"{path} holds more than {SIZE_LIMIT:,} bytes, too many for what it should be")
        text = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror or error}") from error
    return parse_object(text, str(path))


def read_object_if_there(path: Path) -> dict[str, Any] | None:
    """Like `read_object`; None where there is no such file."""
    return read_object(path) if path.is_file() else None


def parse_object(text: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `text`; `what` names it in errors. A key given twice is an error."""
    try:
        content = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{what} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidInput(f"{what} must hold a JSON object, not {type(content).__name__}")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return content
