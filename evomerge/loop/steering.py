"""Requests of a person in another terminal, as a running search follows them: read now and then, in every phase."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from evomerge.clock import SYSTEM_CLOCK, Clock
from evomerge.loop.stop import Stop
from evomerge.requests.steering_requests import RequestBook, SteeringRequests
from evomerge.storage.patience import is_away

POLL_SECONDS = 2.0  # between two readings of the requests, at least


class Steering:
    """The latest requests to this run.

    Args:
        book: the requests of the study; without one there are none, as in a search that is no run.
        stop: told of a request to stop.
        name: of the study whose trials may be cancelled.
    """

    def __init__(
        self,
        book: RequestBook | None = None,
        stop: Stop | None = None,
        name: str = "",
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._book = book
        self._stop = stop
        self._name = name
        self._clock = clock
        self._latest = SteeringRequests()
        self._read_at = -math.inf
        self.readings = 0  # how often the requests have been read
        self._stop_seen: str | None = None

    @contextmanager
    def followed(self) -> Iterator[Steering]:
        """Read the requests during the block whenever the run looks whether it should stop."""
        assert self._stop is not None  # without one there is nothing to follow
        self._stop.on_look = self.poll
        try:
            yield self
        finally:
            self._stop.on_look = lambda: None

    @property
    def paused_by(self) -> str | None:
        """The user who asked for a pause; None where candidates may be proposed."""
        return self._latest.paused_by

    def cancelled(self, study: str) -> frozenset[int]:
        """Numbers of the trials of a study that are to end."""
        return self._latest.cancelled if study == self._name else frozenset()

    def poll(self) -> None:
        """Read the requests, where the last reading is `POLL_SECONDS` ago.

        Where the storage is away, the next reading will do.
        """
        now = self._clock.monotonic()
        if self._book is None or now - self._read_at < POLL_SECONDS:
            return
        self._read_at = now
        try:
            self._latest = self._book.read()
            self.readings += 1
            self._consider(self._book, self._latest.stop, is_first=self.readings == 1)
        except Exception as error:
            if not is_away(error):
                raise

    def _consider(self, book: RequestBook, wanted: Mapping[str, Any] | None, *, is_first: bool) -> None:
        """Follow a new request to stop. One that the first reading finds was meant for an earlier run, or for us."""
        if wanted is None or wanted.get("id") == self._stop_seen:
            return
        self._stop_seen = wanted.get("id")
        if self._stop is not None and (not is_first or _is_for_us(wanted)):
            self._stop.request(f"`evomerge stop` of {wanted.get('by', 'somebody')}")
            book.clear_stop()


def _is_for_us(wanted: Mapping[str, Any]) -> bool:
    return (wanted.get("host"), wanted.get("pid")) == (socket.gethostname(), os.getpid())
