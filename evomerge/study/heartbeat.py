"""Signs of life of a controller in its study, whatever it is doing."""

from __future__ import annotations

import math
from typing import Final

from evomerge.clock import SYSTEM_CLOCK, Clock
from evomerge.storage import attributes
from evomerge.study.search_study import SearchStudy

BEAT_SECONDS: Final = 15.0  # between two signs of life, at least


class Heartbeat:
    """Stores the time now and then. For a loop that calls `beat` in every turn."""

    def __init__(self, search: SearchStudy, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._search = search
        self._clock = clock
        self._latest = -math.inf

    def beat(self) -> None:
        """Give a sign of life, where the latest one is `BEAT_SECONDS` ago."""
        now = self._clock.monotonic()
        if now - self._latest < BEAT_SECONDS:
            return
        self._latest = now  # first: a storage that is away is waited for, where this is called again
        self._search.set(attributes.HEARTBEAT, round(self._clock.time(), 3))
