"""The doubles of the modules `threading`, `time` and `os` for code that runs in simulated processes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from simulation.world import Thread, World

_worlds: list[World] = []


def enter(world: World) -> None:
    """Make a world the one that the doubles belong to."""
    _worlds[:] = [world]


def world() -> World:
    """The world that runs now."""
    return _worlds[0]


class Lock:
    """`threading.Lock` between the threads of a simulated process."""

    def __init__(self) -> None:
        self._is_taken = False

    def acquire(self, blocking: bool = True) -> bool:
        while self._is_taken:
            if not blocking:
                return False
            world().sleep(0.05)
        self._is_taken = True
        return True

    def release(self) -> None:
        self._is_taken = False

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


class Event:
    """`threading.Event`."""

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def wait(self, seconds: float) -> bool:
        end = world().now + seconds
        while not self._is_set and world().now < end:
            world().sleep(min(1.0, end - world().now))
        return self._is_set


class Threading:
    """The module `threading`, as far as leases use it."""

    Lock = Lock
    Event = Event

    class Thread:
        def __init__(self, target: Callable[..., None], args: tuple[Any, ...], name: str, daemon: bool) -> None:
            self._body = lambda: target(*args)

        def start(self) -> None:
            self._thread = Thread(world().process, self._body)
            world().at(world().now, self._thread.resume)

        def join(self, seconds: float) -> None:
            end = world().now + seconds
            while not self._thread.is_over and world().now < end:
                world().sleep(0.2)


class Time:
    """The module `time`, as far as locks of journals use it."""

    @staticmethod
    def monotonic() -> float:
        return world().process.clock.monotonic()

    @staticmethod
    def sleep(seconds: float) -> None:
        world().sleep(seconds)


class Os:
    """The module `os`, whose disk fails, and within whose calls a process may end."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, descriptor: int, content: Any) -> int:
        here = world()
        torn = here.draw.random() < 0.3
        if torn and len(content) > 1 and here.process.faults.kill:
            written = os.write(descriptor, content[: here.draw.randrange(1, len(content))])
            here.trouble()
            return written
        return int(here.call(lambda: os.write(descriptor, content), disk_error))

    def pwrite(self, descriptor: int, content: bytes, offset: int) -> int:
        return int(world().call(lambda: os.pwrite(descriptor, content, offset), disk_error))

    def fsync(self, descriptor: int) -> None:
        world().call(lambda: None, disk_error)


def disk_error() -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO))
