"""Errors that end a job: whose fault they are, and their reason in one line."""

from __future__ import annotations

import signal
import traceback
from pathlib import Path

from evomerge.errors import EvomergeError, InvalidInput, ServiceAway
from evomerge.interjection import TimedOut
from evomerge.jobs import Failed
from evomerge.object_store.remote_folder import ArtifactsAway

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


def is_broken_device(error: BaseException) -> bool:
    """Whether an accelerator has failed, rather than the candidate: every later call in this process would fail too.

    Running out of its memory is the candidate's own failure and breaks nothing.
    """
    import torch

    return isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError)


def failure_of(error: BaseException) -> Failed:
    """The result of a job that an error has ended."""
    invalid = isinstance(error, InvalidInput)
    reason = str(error)[:REASON_LENGTH] if invalid else reason_for(error)
    return Failed(reason, crashed=is_broken_device(error), away=is_service_away(error), invalid=invalid)


def reason_for(error: BaseException) -> str:
    """One line that says why a candidate failed, with the place in our code for errors that we did not foresee."""
    message = f"{type(error).__name__}: {error}".strip().splitlines()[0][:400]
    if isinstance(error, EvomergeError):
        return message
    frames = traceback.extract_tb(error.__traceback__)
    place = f" (in {frames[-1].name}, {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return message + place
