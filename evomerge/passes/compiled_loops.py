"""Loops in C++ that torch and numpy have no operation for, as functions of Python."""

from __future__ import annotations

import ctypes
import logging
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.passes.kernels import compiled_library

logger = logging.getLogger(__name__)

Signatures = Mapping[str, tuple[Any, Sequence[Any]]]
"""Name of a function -> the ctypes of its result and of its arguments."""


def load_loops(path: Path, signatures: Signatures) -> ctypes.CDLL:
    """The functions of a compiled library.

    Raises:
        OSError, AttributeError: it is no library, or another one.
    """
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def loops_of_this_machine(source: Path, signatures: Signatures, without: str) -> ctypes.CDLL | None:
    """The functions of a C++ file, compiled unless they are in the cache folder.

    Args:
        without: the consequence where there is no compiler, for a warning.

    Returns:
        None where there is none.
    """
    try:
        return load_loops(compiled_library(source), signatures)
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        logger.warning("%s: their loops cannot be compiled here (%s)", without, error)
        return None
