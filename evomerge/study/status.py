"""The status of a search as its study stores it: small enough to be read without reading any trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from evomerge.forms import check_form, reading
from evomerge.storage import attributes

FINISHED_PHASE: Final = "finished"  # of a run that has stored its verdict
SEARCHING_PHASE: Final = "searching"  # and at random, of a run that proposes trials
FUTILE: Final = 0.05  # chance below which a search is said to be futile

_LATEST: Final = 1e11  # seconds since 1970: a study that others wrote may hold any number


@dataclass(frozen=True, kw_only=True)
class Status:
    """The state of a search: shown by the progress line, and read from the study by `evomerge status`.

    Attributes:
        state: running, paused, finished, interrupted or failed.
        trials_per_hour: of this run, None before its first result.
        seconds_left: of the part of the budget that will be spent first, None while nothing was spent.
        run_seconds: of all runs of the study together.
        workers: state -> number of workers.
        updated: seconds since the epoch.
        ended: the part of the budget that is spent, in words; None while the search has not finished.
        bar: label of the best baseline that was scored before the search, with its value; None where there is none.
        chance: that what is left of the budget passes it; None while nobody knows.
        forwards: cost of the trials and of what was measured for them, in forward passes of one item; None before the
            first.
    """

    state: str
    finished: int
    budget: int
    failed: int
    running: int
    best: float | None
    best_trial: int | None
    trials_per_hour: float | None
    seconds_left: float | None
    run_seconds: float
    workers: Mapping[str, int]
    restarts: int
    host: str
    pid: int
    updated: float
    dropped: int = 0
    ended: str | None = None
    bar: tuple[str, float] | None = None
    chance: float | None = None

    @property
    def is_futile(self) -> bool:
        """Whether the search can hardly pass the best baseline any more."""
        return self.chance is not None and self.chance < FUTILE

    forwards: float | None = None

    def has_ended_under(self, host: str | None, process: int | None) -> bool:
        """Whether the search has ended under this controller, which is making the rest of what follows from it."""
        return self.state == "finished" and (self.host, self.pid) == (host, process)


def status_of(content: Mapping[str, Any]) -> Status:
    """The status that a study stores."""
    with reading("the status of the study"):
        check_form(Status, content)
        bar = content.get("bar")
        return Status(**{**content, "bar": None if bar is None else (bar[0], bar[1])})


def last_sign(attrs: Mapping[str, Any]) -> float | None:
    """Time of the latest sign of life among the attributes of a study, in seconds since the epoch; None without one.

    A status is stored less often than a heartbeat while nothing changes, and later where nothing beats.
    """
    content = attrs.get(attributes.STATUS) or {}
    times = (attrs.get(attributes.HEARTBEAT), content.get("updated"))
    return max((each for each in times if isinstance(each, (int, float)) and 0 <= each < _LATEST), default=None)
