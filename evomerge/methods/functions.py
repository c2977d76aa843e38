"""Functions that a description names as text, so that the description needs none of their imports."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any


def load_function(path: str | Callable[..., Any]) -> Callable[..., Any]:
    """The function named by "module:function", imported on first use; a function itself as it is.

    Raises:
        ImportError, AttributeError: there is no such module or function: the description is wrong.
    """
    return _imported(path) if isinstance(path, str) else path


@cache
def _imported(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function
