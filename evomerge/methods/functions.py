"""Functions that a description names as text, so that the description needs none of their imports."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any


@cache
def load_function(path: str) -> Callable[..., Any]:
    """The function named by "module:function", imported on first use.

    Raises:
        ImportError, AttributeError: there is no such module or function: the description is wrong.
    """
    module, _, name = path.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function
