"""The clock that waiting and leases are measured by: the system's, or one that a test sets."""

from __future__ import annotations

import time
from typing import Final

__all__ = ["SYSTEM_CLOCK", "Clock", "ManualClock"]

# Linux' CLOCK_MONOTONIC stops while the machine sleeps, and a lease runs out all the same.
_MONOTONIC: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock:
    """The system's clock."""

    def monotonic(self) -> float:
        """Seconds from some fixed moment, also those in which the machine was asleep. Never runs backwards."""
        return time.clock_gettime(_MONOTONIC)

    def time(self) -> float:
        """Seconds since the epoch. Somebody may set this clock, and other machines' clocks differ."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class ManualClock(Clock):
    """A clock that runs only when it is told to: by `sleep`, by `advance`, or by setting its attributes.

    Attributes:
        seconds: what `monotonic` returns.
        epoch: what `time` returns; may be set to anything, as a wall clock may.
    """

    def __init__(self, *, seconds: float = 1_000.0, epoch: float = 1_800_000_000.0) -> None:
        self.seconds = seconds
        self.epoch = epoch

    def monotonic(self) -> float:
        return self.seconds

    def time(self) -> float:
        return self.epoch

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self.seconds += seconds
        self.epoch += seconds


SYSTEM_CLOCK: Final = Clock()
