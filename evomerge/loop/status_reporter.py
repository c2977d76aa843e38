"""The status of a run: counted from the tally, the budget and the workers, passed on, and stored now and then.

A search that has become futile has that in its note in Optuna Dashboard as well, until a verdict takes its place.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable
from dataclasses import asdict, replace

from evomerge.clock import SYSTEM_CLOCK, Clock
from evomerge.cluster import Executor
from evomerge.jobs import Cost
from evomerge.loop.budget import BudgetAccount
from evomerge.messages import in_percent, plain_score
from evomerge.storage import attributes
from evomerge.study.dashboard import write_note
from evomerge.study.search_study import SearchStudy
from evomerge.study.status import Status

STATUS_SECONDS = 2.0  # between two writes of the status attribute, at least
UNCHANGED_SECONDS = 60.0  # likewise, where only times have changed: a journal keeps every one of them


class StatusReporter:
    """Reports the status of one run of a search.

    Args:
        on_status: called with each status; only some are stored in the study.
        before: cost of what was measured and built before the first trial; None: nothing was.
    """

    def __init__(
        self,
        search: SearchStudy,
        executor: Executor,
        account: BudgetAccount,
        on_status: Callable[[Status], None],
        *,
        before: Cost | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._search = search
        self._executor = executor
        self._account = account
        self._on_status = on_status
        self._clock = clock
        self._results = 0
        self._before = Cost() if before is None else before
        self._share_before = account.share
        self._written = -math.inf
        self._stored: Status | None = None  # the latest one, without its times
        self._futile = False

    def add_result(self) -> None:
        """Count a result of this run, for its rate."""
        self._results += 1

    def report(self, state: str, in_flight: int, *, force: bool = False) -> None:
        """Pass the status on, and store it where the stored one is old, or with `force`."""
        status = self._status(state, in_flight)
        self._on_status(status)
        lasting = replace(status, updated=0.0, run_seconds=0.0, seconds_left=None, trials_per_hour=None)
        pause = UNCHANGED_SECONDS if lasting == self._stored else STATUS_SECONDS
        if force or self._clock.monotonic() - self._written >= pause:
            self._search.set(attributes.STATUS, asdict(status))
            self._written, self._stored = self._clock.monotonic(), lasting
            self._note(status)

    def _note(self, status: Status) -> None:
        """Write the note where the search has become futile since the last one, or is so no longer."""
        if status.bar is None or status.is_futile == self._futile:
            return
        self._futile = status.is_futile
        label, value = status.bar
        hope = "can hardly" if status.is_futile else "may still"
        write_note(
            self._search.study,
            f"After {status.finished} trials the search {hope} pass {label} ({plain_score(value)} on the search items) "
            f"with the rest of its budget: the chance is {in_percent(status.chance)}.\n",
        )

    def _status(self, state: str, in_flight: int) -> Status:
        tally, account = self._search.tally, self._account
        used, elapsed = account.share, account.elapsed
        gained = used - self._share_before
        workers = self._executor.workers()
        states = [worker.state for worker in workers]
        ended = account.ended(in_flight) if state == "finished" else None
        left = (1 - used) / gained * elapsed if gained > 0 else None
        return Status(
            state=state,
            finished=tally.finished,
            budget=account.budget.trials,
            failed=tally.failed,
            dropped=tally.dropped,
            running=in_flight,
            best=tally.best[0] if tally.best else None,
            best_trial=tally.best[1] if tally.best else None,
            trials_per_hour=self._results / elapsed * 3600 if self._results else None,
            seconds_left=left if ended is None else 0.0,
            run_seconds=account.run_seconds,
            workers={name: states.count(name) for name in sorted(set(states))},
            restarts=sum(worker.restarts for worker in workers),
            host=socket.gethostname(),
            pid=os.getpid(),
            updated=self._clock.time(),
            bar=None if account.bar is None else (account.bar.label, account.bar.value),
            chance=account.chance,
            ended=ended,
            forwards=(tally.spent + self._before).forwards(tally.spent),
        )
