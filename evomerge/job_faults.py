"""Errors that end a job: whose fault they are, and their reason in one line."""

from __future__ import annotations

import signal
import traceback
from pathlib import Path

from evomerge.errors import EvomergeError, InvalidInput, ServiceAway, causes
from evomerge.interjection import TimedOut
from evomerge.jobs import Failed
from evomerge.object_store.remote_folder import ArtifactsAway
from evomerge.whole_files import OUT_OF_ORDER

REASON_LENGTH = 1500  # characters of what is wrong with the input, so that a study can hold them


def is_from_outside(error: BaseException) -> bool:
    """Whether an error is none of the candidate, but ends or interrupts the process or the job.

    What a candidate may raise besides exceptions is a SystemExit, as a task does that calls `sys.exit`; so does the
    handler of a signal, as those of Ray do.
    """
    if isinstance(error, (KeyboardInterrupt, GeneratorExit, TimedOut)):
        return True
    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in (signal.SIGTERM, signal.SIGINT)}
    return any(frame.f_code in handlers for frame, _ in traceback.walk_tb(error.__traceback__))


def is_service_away(error: BaseException) -> bool:
    """Whether the store of artifacts or another service is away: the same job can be done once it is back."""
    return isinstance(error, ArtifactsAway | ServiceAway)


def is_file_away(error: BaseException) -> bool:
    """Whether a disk, such as a full one, or a network file system is at fault: the same job can be done later.

    It may be behind an error that only says what could not be read.
    """
    return any(isinstance(each, OSError) and each.errno in OUT_OF_ORDER for each in causes(error))


def is_broken_device(error: BaseException) -> bool:
    """Whether an accelerator has failed, rather than the candidate: every later call in this process would fail too.

    Running out of its memory is the candidate's own failure and breaks nothing.
    """
    import torch

    return isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError)


def failure_of(error: BaseException) -> Failed:
    """The result of a job that an error has ended."""
    away = is_service_away(error) or is_file_away(error)
    invalid = isinstance(error, InvalidInput) and not away
    return Failed(_reason(error), crashed=is_broken_device(error), away=away, invalid=invalid)


def _reason(error: BaseException) -> str:
    if is_file_away(error):
        from evomerge.storage.patience import said_of_full_disk  # which imports what no job needs

        if (said := said_of_full_disk(error)) is not None:
            return said
    return str(error)[:REASON_LENGTH] if isinstance(error, InvalidInput) else reason_for(error)


def reason_for(error: BaseException) -> str:
    """One line that says why a candidate failed, with the place in our code for errors that we did not foresee."""
    message = f"{type(error).__name__}: {error}".strip().splitlines()[0][:400]
    if isinstance(error, EvomergeError):
        return message
    frames = traceback.extract_tb(error.__traceback__)
    place = f" (in {frames[-1].name}, {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return message + place
