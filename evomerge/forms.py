"""The form of documents that somebody else may have written: checked by type before anything is made of them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from evomerge.errors import InvalidInput
from evomerge.messages import in_one_line

# What code raises that takes the form of a document for granted. Those of Unicode and of pydantic are ValueErrors.
_MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Take errors of code that reads a document for faults of the document: InvalidInput, which names it."""
    try:
        yield
    except _MALFORMED as error:
        raise InvalidInput(f"{what} is not in the form that evomerge writes: {in_one_line(error, 200)}") from error


def check_form(kind: Any, content: Any) -> None:
    """Raise ValueError where plain data is not in the form of a type. Whoever reads a document does it in `reading`."""
    parse_json(json.dumps(content), kind)


def parse_json(text: str, kind: Any = dict[str, Any]) -> Any:
    """JSON in the form of a type, which is an object without one. Raises ValueError, see `check_form`."""
    content = json.loads(text, parse_int=_integer)
    # Strictly, a number is no text; and only of JSON are lists then taken for tuples.
    _adapter(kind).validate_json(text, strict=True)
    return content


def finite_or_none(value: float | None) -> float | None:
    """A number as JSON can hold it: None where it is not finite."""
    return value if value is not None and math.isfinite(value) else None


def is_file(path: Path) -> bool:
    """Whether there is such a file. There is none of a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether there is such a folder. There is none of a name that no folder can have."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder. There is none of a name that none can have."""
    return is_file(path) or is_folder(path)


def expanded(path: str) -> Path:
    """A path with the home folder in the place of ~; as it is where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def nearest_existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def _integer(digits: str) -> int:
    value = int(digits)
    if abs(value) > sys.float_info.max:  # whoever computes with it or formats it would meet OverflowError
        raise ValueError(f"the integer {digits[:20]}... of {len(digits)} digits is larger than any number may be")
    return value


@lru_cache(maxsize=100)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
