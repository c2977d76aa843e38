"""A digest of code that somebody wrote beside a search, so that a study notices when it has become other code."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator
from functools import cached_property
from textwrap import dedent
from types import CodeType, FunctionType
from typing import Any


def code_digest(code: type | Callable[..., Any]) -> str:
    """SHA-256 of the text of a function or class.

    Where Python does not find the text, as for classes of a notebook, it is that of the compiled functions; there
    comments do not count, and another version of Python gives another digest. What the code calls is not part of it.
    """
    try:
        text = dedent(inspect.getsource(code))
    except (OSError, TypeError):
        text = "\n".join(_compiled(code))
    return hashlib.sha256(text.encode()).hexdigest()


def _compiled(code: Any) -> Iterator[str]:
    """Everything of compiled code, and of the plain values beside it, that two runs of Python have in common."""
    if isinstance(code, CodeType):
        yield f"{code.co_name} {code.co_code.hex()} {code.co_names} {code.co_varnames}"
        yield from _compiled(code.co_consts)
    elif isinstance(code, FunctionType):
        yield from _compiled((code.__code__, code.__defaults__, code.__kwdefaults__))
        yield from _compiled(getattr(code, "__wrapped__", None))
    elif isinstance(code, property):
        yield from _compiled(code.fget)
    elif isinstance(code, staticmethod | classmethod):
        yield from _compiled(code.__func__)
    elif isinstance(code, cached_property):
        yield from _compiled(code.func)
    elif isinstance(code, type):
        yield from _compiled({name: value for name, value in vars(code).items() if _counts(name, value)})
    elif isinstance(code, dict):
        yield from _compiled([part for item in code.items() for part in item])
    elif isinstance(code, tuple | list):
        yield str(len(code))
        for part in code:
            yield from _compiled(part)
    elif isinstance(code, set | frozenset):  # without an order of their own
        yield from sorted("".join(_compiled(part)) for part in code)
    elif isinstance(code, str | bytes | int | float | complex | None):
        yield repr(code)


def _counts(name: str, value: object) -> bool:
    """Whether something in a class is of its writer, and not of Python."""
    return not name.startswith("__") or callable(value)
