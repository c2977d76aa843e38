"""Every error that evomerge raises on purpose, and the exit code that each one means.

EvomergeError
├── InvalidInput       2  the spec, a file or an argument is wrong; nothing was run
├── Interrupted        3  stopped by a signal, or out of memory or disk; the same command resumes
├── OtherSpec          4  the study was made with another spec
├── StoppedByFailures  5  most candidates fail, or no worker can be started
├── StudyHeld          6  another controller holds the study
├── ServiceAway        3  a service that an evaluator needs is away: the candidate is scored again, later
└── MergeError         -  one candidate cannot be merged: becomes a failed trial, never ends a search

Anything else that reaches the command line is our bug: exit code 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

__all__ = [
    "EvomergeError",
    "Interrupted",
    "InvalidInput",
    "MergeError",
    "OtherSpec",
    "ServiceAway",
    "StoppedByFailures",
    "StudyHeld",
]

_Entered = TypeVar("_Entered")


class EvomergeError(Exception):
    """Base class of all errors that evomerge raises on purpose."""

    exit_code = 1


class InvalidInput(EvomergeError):
    """Something that the user gave cannot be used. The message says what, what is allowed and what to do."""

    exit_code = 2


class Interrupted(EvomergeError):
    """The run was stopped from outside; everything finished is stored and the same command resumes."""

    exit_code = 3


class OtherSpec(EvomergeError):
    """The study was created with another identity (sources, space, evaluator, objective, sampler, seed, …)."""

    exit_code = 4


class StoppedByFailures(EvomergeError):
    """More than half of the latest candidates failed, or the workers cannot be kept alive."""

    exit_code = 5


class StudyHeld(EvomergeError):
    """Another controller is writing to the study."""

    exit_code = 6


class ServiceAway(EvomergeError):
    """A service that an evaluator needs, such as a model server, cannot be reached. It tells nothing of the candidate,
    which is tried again for ten minutes; then, and without Ray at once, the run stops as interrupted, and the next one
    begins with the candidate."""

    exit_code = 3


class MergeError(EvomergeError):
    """A candidate that has no merge: all weights zero, or weights that are not finite."""


@contextmanager
def first_reason(manager: AbstractContextManager[_Entered], clean_up: str) -> Iterator[_Entered]:
    """A context whose end hides no error of its block: one of its own is a note below that.

    Args:
        clean_up: the work of its end, in words.
    """
    entered = manager.__enter__()
    try:
        yield entered
    except BaseException as reason:
        with noted(reason, clean_up):
            manager.__exit__(type(reason), reason, reason.__traceback__)
        raise
    manager.__exit__(None, None, None)


@contextmanager
def noted(reason: BaseException, clean_up: str) -> Iterator[None]:
    """A block of cleaning up after an error, whose own error becomes a note of that one.

    Args:
        clean_up: the work of the block, in words.
    """
    try:
        yield
    except Exception as second:
        if str(second) != str(reason):  # the same trouble met again says nothing new
            reason.add_note(f"then, {clean_up}: {' '.join(f'{type(second).__name__}: {second}'.split())}")


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and what caused it: the driver's error behind SQLAlchemy's behind Optuna's."""
    seen: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and not any(each is other for other in seen):
        seen.append(each)
        yield each
        orig = getattr(each, "orig", None)
        each = orig if isinstance(orig, BaseException) else each.__cause__


def nearest(given: str, known: Iterable[str]) -> list[str]:
    """The up to three known names that look most like the given one."""
    return difflib.get_close_matches(given, list(known), n=3, cutoff=0.5)


def unknown_name(kind: str, given: str, known: Iterable[str]) -> InvalidInput:
    """The error for a name that does not exist, with the nearest names that do."""
    names = sorted(known)
    close = nearest(given, names)
    hint = f"did you mean {' or '.join(repr(c) for c in close)}?" if close else f"known: {', '.join(names) or 'none'}"
    return InvalidInput(f"unknown {kind} {given!r}; {hint}")
