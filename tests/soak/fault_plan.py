"""Faults of a soak, planned from one seed: what breaks when, which one of those that are there, and for how long."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

WORKER_KILLED, WORKER_STOPPED, NODE_KILLED = "worker killed", "worker stopped", "node killed"
CONTROLLER_KILLED, CONTROLLER_TERMINATED = "controller killed", "controller terminated"
DATABASE_RESTARTED, DATABASE_FROZEN = "database restarted", "database frozen"
BOTH_KILLED = "database and controller killed"

OF_THE_CLUSTER = (WORKER_KILLED, WORKER_KILLED, WORKER_STOPPED, NODE_KILLED)  # as often as they stand here
OF_THE_CONTROLLER = (
    CONTROLLER_KILLED,
    CONTROLLER_TERMINATED,
    DATABASE_RESTARTED,
    DATABASE_FROZEN,
    BOTH_KILLED,
)
LONGEST_SECONDS = 10.0  # that a node, a database or a stopped worker is away


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        second: since the search began.
        kind: of the names above.
        choice: in [0, 1): of those that are there in order, the one this far.
        lasts: seconds until it is over, where it is one that ends.
    """

    second: float
    kind: str
    choice: float
    lasts: float


def plan(seed: int, seconds: float, *, every: float, kinds: tuple[str, ...]) -> list[Fault]:
    """Faults of these kinds, one in the middle half of each so many seconds.

    Each kind comes once, in an order of its own, before any comes again.
    """
    luck = random.Random(f"{seed} {kinds}")
    order = _in_rounds(kinds, luck)
    return [
        Fault((slot + luck.uniform(0.25, 0.75)) * every, next(order), luck.random(), luck.uniform(0.0, LONGEST_SECONDS))
        for slot in range(int(seconds // every))
    ]


def _in_rounds(kinds: tuple[str, ...], luck: random.Random) -> Iterator[str]:
    while True:
        yield from luck.sample(kinds, len(kinds))
