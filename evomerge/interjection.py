"""Errors that another thread raises in the main thread, in the middle of what it is doing; deadlines made of them."""

from __future__ import annotations

import math
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Nobody else uses this signal, and by default it is ignored: a stray one does no harm.
_SIGNAL = signal.SIGURG

Handler = Callable[[int, FrameType | None], object] | int | None  # as the module signal has them

HANG_SECONDS = (
    5.0  # within which code that was interrupted has left the block, unless it is compiled and does not return
)


class TimedOut(BaseException):
    """A deadline has passed. No `except Exception` takes it for an error of the code that it interrupts."""


class Interjection:
    """An error for the main thread, which is raised at its next instruction; a call that waits, such as sleep, ends.

    To be started and finished in the main thread. Compiled code that does not return to Python is not interrupted.
    """

    def __init__(self, make: Callable[[], BaseException]) -> None:
        self._make = make
        self._is_due = False
        self._raised: Callable[[], BaseException | None] = lambda: None
        self._before: Handler = None

    def start(self) -> None:
        """Begin to take interjections."""
        self._before = signal.signal(_SIGNAL, self._on_signal)

    def finish(self) -> None:
        """Take none any more, also of those that are due."""
        self._is_due = False
        signal.signal(_SIGNAL, self._before)

    @property
    def is_on_its_way(self) -> bool:
        """Whether the error has been raised, and nobody has caught and forgotten it."""
        return self._raised() is not None

    def interject(self) -> None:
        """Have the error raised. To be called again while `is_on_its_way` is false: a signal may have been lost."""
        self._is_due = True
        signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)

    def error(self) -> BaseException:
        """The error, for a signal handler that raises it by itself."""
        # No frame of the traceback may hold it: it would keep itself alive.
        error = self._make()
        self._raised = weakref.ref(error)
        return error

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._is_due:
            self._is_due = False
            raise self.error()
        if callable(self._before):
            self._before(number, frame)


@contextmanager
def deadline(seconds: float, on_hang: Callable[[], None] | None = None) -> Iterator[None]:
    """Raise TimedOut in the block where it takes longer than `seconds`. Without effect outside of the main thread.

    Args:
        on_hang: called in another thread where the block does not end even then, because compiled code does not return;
            the block does not end before it has. It should end the process.
    """
    if not math.isfinite(seconds) or threading.current_thread() is not threading.main_thread():
        yield
        return
    timed_out = Interjection(TimedOut)
    timed_out.start()
    watch = _Watch(seconds, timed_out.interject, on_hang)
    watch.start()
    try:
        yield
    finally:
        watch.leave()
        timed_out.finish()


class _Watch(threading.Thread):
    """Waits for the end of a block."""

    def __init__(self, seconds: float, on_late: Callable[[], None], on_hang: Callable[[], None] | None) -> None:
        super().__init__(name="deadline", daemon=True)
        self._seconds = min(seconds, threading.TIMEOUT_MAX)
        self._on_late = on_late
        self._on_hang = on_hang
        self._left = threading.Event()
        self._giving_up = threading.Lock()

    def leave(self) -> None:
        with self._giving_up:
            self._left.set()

    def run(self) -> None:
        if self._left.wait(self._seconds):
            return
        self._on_late()
        if self._on_hang is None or self._left.wait(HANG_SECONDS):
            return
        with self._giving_up:
            if not self._left.is_set():
                self._on_hang()
