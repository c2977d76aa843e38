"""Memory that a command has run out of: of the machine, so no bug, and the same command may succeed later."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from typing import Final

from evomerge.errors import Interrupted, causes
from evomerge.messages import first_line

_SAID: Final = ("out of memory", "can't allocate memory")  # by torch, in errors that have no type of their own
_WITH_DEVICE: Final = ("export", "merge")  # commands that take --device


def out_of_memory(error: Exception, arguments: Sequence[str] | None) -> Interrupted | None:
    """The end of a command for want of memory; None for an error of another kind.

    Args:
        arguments: of the command line; those of this process without them.
    """
    found = next((each for each in causes(error) if isinstance(each, Exception) and _is_memory(each)), None)
    if found is None:
        return None
    given = sys.argv[1:] if arguments is None else arguments
    remedy = ", or give --device cpu" if next(iter(given), "") in _WITH_DEVICE and "CUDA" in str(found) else ""
    said = first_line(found)[:300]
    return Interrupted(
        f"out of memory: {said}; end what else uses the GPU or the memory{remedy}; then run the same command again"
    )


def _is_memory(error: Exception) -> bool:
    """By name, since torch is not imported for it: most commands need none."""
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID)
