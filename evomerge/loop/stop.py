"""Signals that end a run: noticed between two events, never in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from evomerge.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Set by a signal: the loop ends at the next event and leaves the trials in flight to the next run."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def request(self, reason: str) -> None:
        self.reason = reason

    def listen(self) -> None:
        """Let SIGINT and SIGTERM request a stop. To be called again after ray.init, which installs its own handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C means now
        self.request(signal.Signals(number).name)

    def check(self) -> None:
        if self.reason is not None:
            raise Interrupted(f"stopped by {self.reason}; run the same command again to go on")


@contextmanager
def stopping_on_signals() -> Iterator[Stop]:
    """A Stop that listens to signals, until the end of the block."""
    stop = Stop()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    stop.listen()
    try:
        yield stop
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
