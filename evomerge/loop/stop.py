"""Signals that end a run: SIGINT, SIGTERM and SIGHUP alike.

A loop notices a signal between two events. Whatever has not noticed it after a second is interrupted where it is. A
command ends its process soon after in any case, and at once at a second signal, also where compiled code does not
return: what is stored is complete at any instant, and the next run continues from there.
"""

from __future__ import annotations

import math
import os
import select
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from evomerge.errors import Interrupted
from evomerge.interjection import Handler, Interjection

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GO_ON = "run the same command again to go on"

NOTICE_SECONDS = 1.0  # that a run has to notice a signal by itself
END_SECONDS = 4.0  # after which a command has ended its process, cleaned up or not
NOW_SECONDS = 0.7  # likewise after a second signal


class Signalled(KeyboardInterrupt):
    """Raised by a signal in the middle of something. No `except Exception` takes it for an error of its own."""


class Stop:
    """Set by a signal: the loop ends at the next event and leaves the trials in flight to the next run.

    Args:
        end_process: ends the process, with an exit code and the reason, where it has not ended in time. A command line
            may do that; whoever calls the library is left to wait.
    """

    def __init__(self, end_process: Callable[[int, str], object] | None = None) -> None:
        self.reason: str | None = None
        self.on_look: Callable[[], None] = lambda: None
        self._end_process = end_process
        self._in_run = False
        self._noticed = False
        self._handled = 0  # signals that came to our handler
        self._received = 0  # signals that came to the process
        self._interjection = Interjection(lambda: Signalled(self.reason))
        self._bell: tuple[int, int] | None = None  # a pipe that wakes the thread that watches
        self._is_over = False
        self._before: dict[signal.Signals, Handler] = {}

    def request(self, reason: str) -> None:
        self.reason = reason

    def check(self) -> None:
        """Raise Interrupted where a stop was requested."""
        if self.reason is not None:
            raise self._interruption()
        self.listen()

    def look(self) -> None:
        """Look for requests of others, and raise Interrupted where a stop was requested.

        They are read from the storage: what waits for that, or has its lock, can only `check`.
        """
        self.on_look()
        self.check()

    def notice(self) -> None:
        """Note that all that runs from now on ends by itself, and is not interrupted by the first signal."""
        self._noticed = True

    def _interruption(self) -> Interrupted:
        self.notice()
        return Interrupted(f"stopped by {self.reason}; {GO_ON}")

    def listen(self) -> None:
        """Handle the signals where others have put handlers in the place of ours, as ray.init does.

        Ray's C++ puts its own there too, of which Python does not know: so ours are put back each time.
        """
        if self._bell is not None and threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                    signal.signal(number, self._on_signal)

    def start(self) -> None:
        """Begin to listen, until `finish` or the end of the process. To be called in the main thread."""
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self._bell = reading, ringing = os.pipe()
        for end in self._bell:
            os.set_blocking(end, False)
        # A signal rings even while no Python runs in this thread, and while others' handlers are in the place of ours.
        others = signal.set_wakeup_fd(ringing, warn_on_full_buffer=False)
        if others != -1:
            signal.set_wakeup_fd(others)
        self._interjection.start()
        self.listen()
        os.register_at_fork(after_in_child=_forgetting(self))
        threading.Thread(target=self._watch, args=(reading,), name="signals", daemon=True).start()

    def finish(self) -> None:
        """Give the signals back to whoever had them before."""
        assert self._bell is not None  # it has been started
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._interjection.finish()
        if (others := signal.set_wakeup_fd(-1)) != self._bell[1]:
            signal.set_wakeup_fd(others)
        ringing, self._bell = self._bell[1], None
        self._is_over = True
        _ring(ringing)
        os.close(ringing)

    @contextmanager
    def in_run(self) -> Iterator[None]:
        """A run, whose loop notices a signal by itself. Whatever ends the run after a signal becomes Interrupted."""
        self._in_run = True
        try:
            yield
        except (KeyboardInterrupt, SystemExit) as error:  # ray.init puts a handler there that calls sys.exit
            if isinstance(error, SystemExit) and self.reason is None:
                time.sleep(0.2)  # until the thread that watches has told of it
            if self.reason is None:
                raise
            raise self._interruption() from None
        finally:
            self._in_run = False

    def forget(self) -> None:
        """Leave the signals to their default in a process that was forked from this one."""
        if self._bell is not None:
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                if signal.getsignal(number) == self._on_signal:
                    signal.signal(number, signal.SIG_DFL)

    @property
    def can_end_process(self) -> bool:
        return self._end_process is not None

    def end_process(self, code: int, reason: str) -> None:
        """End the process without any clean-up, where it is a command's."""
        if self._end_process is not None:
            self._end_process(code, reason)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._handled += 1
        self.request(signal.Signals(number).name)
        if self._bell is not None:
            _ring(self._bell[1])
        if self._handled > 1 or not self._in_run:
            raise self._interjection.error()

    def _watch(self, bell: int) -> None:
        """Count the signals, and see to it that they have an effect."""
        interrupt = end = math.inf
        while not self._is_over:
            if select.select([bell], [], [], None if end == math.inf else 0.05)[0]:
                self._count([number for number in os.read(bell, 1024) if number in SIGNALS])
            now, count = time.monotonic(), max(self._handled, self._received)
            if count and end == math.inf:
                interrupt, end = now + NOTICE_SECONDS, now + END_SECONDS
            if count > 1 and end > now + NOW_SECONDS:
                interrupt, end = now, now + NOW_SECONDS
            if now >= interrupt and not self._noticed and not self._interjection.is_on_its_way:
                interrupt = now + NOTICE_SECONDS
                self._interjection.interject()
            if now >= end:
                end = now + END_SECONDS
                self.end_process(3, f"ended by {self.reason}; {GO_ON}")
        os.close(bell)

    def _count(self, numbers: list[int]) -> None:
        if numbers:
            _cancel_abort()
        self._received += len(numbers)
        if numbers and self.reason is None:
            self.request(signal.Signals(numbers[0]).name)


@contextmanager
def stopping_on_signals() -> Iterator[Stop]:
    """A Stop that listens to signals in this block, which is a run: the command's own Stop where there is one.

    Raises:
        Interrupted: a signal has ended the block.
    """
    handler = signal.getsignal(signal.SIGTERM)
    stop = getattr(handler, "__self__", None)
    if isinstance(stop, Stop):
        with stop.in_run():
            yield stop
        return
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    stop.start()
    try:
        with stop.in_run():
            yield stop
    finally:
        stop.finish()


def _cancel_abort() -> None:
    """Cancel the alarm that the handler of Ray's C++ sets: three seconds after a signal it aborts the process.

    It comes to that where the signal is sent after `ray.init` and before `listen`.
    """
    if signal.getsignal(signal.SIGALRM) is signal.SIG_DFL:  # nothing in Python has an alarm of its own
        signal.alarm(0)


def _ring(bell: int) -> None:
    with suppress(BlockingIOError, BrokenPipeError):  # full: it has been rung; broken: who watches has gone
        os.write(bell, b"\0")


def _forgetting(stop: Stop) -> Callable[[], None]:
    """A hook for forks, which cannot be taken back, and so does not keep `stop` alive."""
    known = weakref.ref(stop)

    def forget() -> None:
        if (found := known()) is not None:
            found.forget()

    return forget
