"""Errors that another thread raises in the main thread, in the middle of what it is doing."""

from __future__ import annotations

import signal
import threading
import weakref
from collections.abc import Callable
from types import FrameType

# Nobody else uses this signal, and by default it is ignored: a stray one does no harm.
_SIGNAL = signal.SIGURG

Handler = Callable[[int, FrameType | None], object] | int | None  # as the module signal has them


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
