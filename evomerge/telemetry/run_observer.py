"""The observer of one run: it makes messages, metrics and entries of trackers of the statuses of a search, and of its
result and end.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import Interrupted
from evomerge.messages import in_one_line
from evomerge.spec import SearchSpec
from evomerge.storage import attributes
from evomerge.study.search_study import SearchStudy
from evomerge.study.status import Status
from evomerge.telemetry.ended_trials import EndedTrials
from evomerge.telemetry.messenger import Messenger
from evomerge.telemetry.open_telemetry import OpenTelemetryMetrics
from evomerge.telemetry.prometheus import MetricFamily, metrics_text, search_metrics
from evomerge.telemetry.tracker import Conclusion, EndState, TrackedRun
from evomerge.telemetry.tracking import Tracking, tracker_settings
from evomerge.telemetry.trial_entries import search_config, trial_entry
from evomerge.whole_files import write_whole

if TYPE_CHECKING:
    from evomerge.cluster.ray_executor.gauges import RayGauges

SCHEMA = 1
METRICS_SECONDS = 5.0  # between two writes of the metrics, at least

_log = logging.getLogger(__name__)


class RunObserver:
    """Tells others of a run, as its spec says. Nothing that goes wrong here ends the run.

    Args:
        search: the study, whose trials so far are no news.
    """

    def __init__(self, spec: SearchSpec, search: SearchStudy, messenger: Messenger | None) -> None:
        self._spec = spec
        self._search = search
        self._messenger = messenger
        self._settings = tracker_settings(spec.track)
        self._ended = EndedTrials(search.study) if self._settings else None
        self._trackings: list[Tracking] = []
        self._best = search.tally.best
        self._failure: tuple[int, str] | None = None
        self._written = -math.inf
        self._textfile_fails = False
        self._latest: Status | None = None
        self._gauges: RayGauges | None = None
        self._open_telemetry = OpenTelemetryMetrics(spec.name)

    def status(self, status: Status, search: SearchStudy) -> None:
        """Take note of a status of the search.

        Args:
            search: the study as it is written to now: a space that is made of merges has another writer than at first.
        """
        self._search = search
        for ended in [] if self._ended is None else self._ended.new():
            self._track({"trial": asdict(trial_entry(ended))})
        self._latest = status
        best = self._search.tally.best
        if best is not None and best != self._best:  # with constraints its value may be below the one before
            self._send("best", {"trial": best[1], "value": best[0], **_progress(status)})
            self._best = best
        failure = self._search.latest_failure
        if failure is not None and failure != self._failure:
            self._failure = failure
            self._send("failure", {"trial": failure[0], "reason": failure[1], **_progress(status)})
        if status.state not in ("running", "paused") or time.monotonic() - self._written >= METRICS_SECONDS:
            self._write_metrics(status)

    def conclude(self, find: Callable[[], Conclusion]) -> None:
        """Have trackers log the result of the search.

        Args:
            find: makes it, where there are trackers.
        """
        if self._settings:
            self._track({"finding": asdict(find())})

    def end(self, state: EndState, reason: str | None) -> None:
        """Tell of the end of the run.

        Args:
            state: finished, interrupted or failed.
            reason: why, where it has not finished.
        """
        best = self._search.tally.best
        found = None if best is None else {"trial": best[1], "value": best[0]}
        progress = {} if self._latest is None else _progress(self._latest)
        self._send("end", {"state": state, "reason": reason, "best": found, **progress})
        for tracking in self._trackings:
            tracking.send({"end": state})

    def _send(self, event: str, content: dict[str, Any]) -> None:
        if self._messenger is None or self._spec.notify is None or event not in self._spec.notify.on:
            return
        origin = {"host": socket.gethostname(), "pid": os.getpid(), "time": round(time.time(), 3)}
        self._messenger.send({"schema": SCHEMA, "event": event, "study": self._spec.name, **origin, **content})

    def _track(self, document: dict[str, Any]) -> None:
        if not self._trackings:  # a run that ends before its first trial is not logged
            run = TrackedRun(id=self._run_id(), study=self._spec.name, config=search_config(self._spec))
            self._trackings = [Tracking(name, settings, run) for name, settings in self._settings.items()]
        for tracking in self._trackings:
            tracking.send(document)

    def _run_id(self) -> str:
        """The id by which the trackers know the search, made once for all its runs."""
        known = self._search.study.user_attrs.get(attributes.TRACKED)
        if known is None:
            known = uuid.uuid4().hex[:16]
            self._search.set(attributes.TRACKED, known)
        return str(known)

    def close(self) -> None:
        """Wait, for a while, for the last deliveries."""
        if self._messenger is not None:
            self._messenger.close()
        for tracking in self._trackings:
            tracking.close()

    def _write_metrics(self, status: Status) -> None:
        self._gauges = self._gauges or _ray_gauges(self._spec.name)
        gauges = self._gauges if self._gauges is not None and self._gauges.are_served() else None
        numbers = search_metrics(status, self._search.tally, self._spec.budget, _resident())
        self._open_telemetry.set(numbers)
        if gauges is not None:
            for each in numbers:
                gauges.set(f"evomerge_{each.name}", each.help, each.values)
        if self._spec.metrics is not None:
            self._write_textfile(Path(self._spec.metrics.textfile), numbers)
        self._written = time.monotonic()

    def _write_textfile(self, path: Path, numbers: list[MetricFamily]) -> None:
        try:
            write_whole(path, metrics_text(self._spec.name, numbers).encode())
        except OSError as error:
            if not self._textfile_fails:  # once for each time that it begins
                _log.warning("metrics are not written to %s: %s", path, error.strerror)
            self._textfile_fails = True
        else:
            if self._textfile_fails:
                _log.warning("metrics are written to %s again", path)
            self._textfile_fails = False


@contextmanager
def observing(spec: SearchSpec, search: SearchStudy) -> Iterator[RunObserver]:
    """An observer of a run, which is told how the block ended.

    Raises:
        InvalidInput: messages cannot be delivered as the spec says.
    """
    messenger = None if spec.notify is None else Messenger(spec.notify)
    observer = RunObserver(spec, search, messenger)
    try:
        try:
            yield observer
        except (Interrupted, KeyboardInterrupt) as error:
            observer.end("interrupted", in_one_line(error))
            raise
        except BaseException as error:
            observer.end("failed", in_one_line(error))
            raise
        observer.end("finished", None)
    finally:
        observer.close()


def _progress(status: Status) -> dict[str, Any]:
    return {"finished": status.finished, "failed": status.failed, "budget": status.budget}


def _ray_gauges(study: str) -> RayGauges | None:
    """Gauges on Ray, where this process uses it: nothing else loads it."""
    if "ray" not in sys.modules:
        return None
    from evomerge.cluster.ray_executor.gauges import RayGauges

    return RayGauges(study)


def _resident() -> int | None:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):  # not Linux
        return None
