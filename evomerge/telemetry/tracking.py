"""A tracker as the controller sees it: documents go to its process, which can neither stop nor slow a search."""

from __future__ import annotations

import json
import logging
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from evomerge.clock import SYSTEM_CLOCK, Clock
from evomerge.errors import InvalidInput
from evomerge.observers import TrackSpec
from evomerge.telemetry.tracker import TrackedRun

COMPLAINT_SECONDS: Final = 60.0  # between two lines about documents that were lost
LAST_SECONDS: Final = 20.0  # without an answer, after which the end of a run does not wait for a tracker any more
LONGEST_SECONDS: Final = 120.0  # that the end of a run waits in any case
_FAREWELL_SECONDS: Final = 5.0  # for a process that has logged everything
_SHOWN: Final = 160  # characters of a reason
_WAITING: Final = 1000  # documents; further ones are lost

_COMMAND: Final = (sys.executable, "-P", "-m", "evomerge.telemetry.tracking_process")
# MLflow's own defaults try a dead server for many minutes.
_PATIENCE: Final = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}

_log = logging.getLogger(__name__)


class Tracking:
    """Hands documents to the process of one tracker, in their order, from a thread that nobody waits for.

    Args:
        name, settings: of the tracker.
        run: that it begins or continues with the first document.
        command: starts the process.
    """

    def __init__(
        self,
        name: str,
        settings: Mapping[str, Any],
        run: TrackedRun,
        *,
        command: Sequence[str] = _COMMAND,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._name = name
        self._first = json.dumps({"tracker": name, "settings": dict(settings), "run": asdict(run)})
        self._secrets = _secrets(settings)
        self._command = command
        self._clock = clock
        self._queue: queue.Queue[str | None] = queue.Queue(_WAITING)
        self._process: subprocess.Popen[str] | None = None
        self._started: float | None = None
        self._answered = clock.monotonic()
        self._lost = 0
        self._reason = ""
        self._said: float | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._hand_on, name=f"evomerge-{name}", daemon=True)
        self._thread.start()

    def send(self, document: Mapping[str, Any]) -> None:
        """Log a document soon."""
        try:
            self._queue.put_nowait(json.dumps(document))
        except queue.Full:
            self._lose("it is so slow that results wait for it")

    def close(self) -> None:
        """Wait for the last documents while they are answered, then end the process."""
        with suppress(queue.Full):  # a tracker that hangs is ended below
            self._queue.put_nowait(None)
        began = self._answered = self._clock.monotonic()
        while self._thread.is_alive():
            self._thread.join(0.1)
            now = self._clock.monotonic()
            if now - self._answered > LAST_SECONDS or now - began > LONGEST_SECONDS:
                self._lose("it does not answer", self._queue.qsize())
                break
        self._closed = True
        self._end_process()
        self._said = None
        if self._lost:  # since the latest line
            self._lose(self._reason, 0)

    def _hand_on(self) -> None:
        while (line := self._queue.get()) is not None:
            if reason := self._answer_to(line):
                self._lose(reason)

    def _answer_to(self, line: str) -> str:
        """The reason where a document was lost, else an empty text."""
        try:
            process = self._running()
            return "its process has ended" if process is None else self._exchange(process, line)
        except (OSError, ValueError) as error:
            self._end_process()
            return f"its process has ended: {error}"

    def _running(self) -> subprocess.Popen[str] | None:
        """The process, started where there is none; None where the last one was started less than a minute ago."""
        if self._process is None and not self._closed:
            now = self._clock.monotonic()
            if self._started is not None and now - self._started < COMPLAINT_SECONDS:
                return None
            self._started = now
            self._process = self._start()
            if reason := self._exchange(self._process, self._first):
                self._lose(reason, 0)
        return self._process

    def _start(self) -> subprocess.Popen[str]:
        path = os.pathsep.join(filter(None, sys.path))
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**_PATIENCE, **os.environ, "PYTHONPATH": path},
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C ends the search, which then tells the tracker
        )

    def _exchange(self, process: subprocess.Popen[str], line: str) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        self._answered = self._clock.monotonic()
        return str(json.loads(answer))

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(OSError, subprocess.TimeoutExpired):
            if process.stdin is not None and not self._thread.is_alive():
                process.stdin.close()
                process.wait(_FAREWELL_SECONDS)
        with suppress(OSError):
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError, ValueError):
                    stream.close()

    def _lose(self, reason: str, documents: int = 1) -> None:
        """Count lost documents, and say so once a minute."""
        with self._lock:
            self._lost += documents
            self._reason = reason
            now = self._clock.monotonic()
            if self._said is not None and now - self._said < COMPLAINT_SECONDS:
                return
            self._said, lost, self._lost = now, self._lost, 0
        for secret in self._secrets:
            reason = reason.replace(secret, "***")
        results = "result" if lost == 1 else "results"
        what = f"did not log {lost} {results}, which the study has" if lost else "cannot log this search yet"
        _log.warning("%s %s: %s", self._name, what, reason[:_SHOWN])


def check_trackers(track: TrackSpec | None) -> None:
    """Refuse trackers that are not installed, or whose address is not where the spec says.

    Raises:
        InvalidInput: a library is missing, or an environment variable is not set.
    """
    for name in tracker_settings(track):
        if find_spec(name) is None:
            raise InvalidInput(
                f"track names {name}, which is not installed: pip install 'evomerge[{name}]', or leave it out"
            )


def tracker_settings(track: TrackSpec | None) -> dict[str, dict[str, Any]]:
    """Name of each tracker of a spec -> its settings as they are.

    Raises:
        InvalidInput: an environment variable is not set.
    """
    chosen = {} if track is None else track.chosen
    return {name: _resolved(spec.model_dump()) for name, spec in chosen.items()}


def _resolved(settings: dict[str, Any]) -> dict[str, Any]:
    uri = settings.get("uri")
    if uri is None or not uri.startswith("env:"):
        return settings
    variable = uri.removeprefix("env:")
    if not os.environ.get(variable):
        raise InvalidInput(
            f"track: mlflow: uri is {uri!r}, but the environment variable {variable!r} is not set; export the tracking "
            "URI in it, or leave uri out"
        )
    return {**settings, "uri": os.environ[variable]}


def _secrets(settings: Mapping[str, Any]) -> set[str]:
    """User and password of a URI, as they are written there and as they are."""
    try:
        user = urlsplit(settings.get("uri") or "").netloc.rpartition("@")[0]
    except ValueError:
        return set()
    password = user.partition(":")[2]
    return {secret for secret in (user, password, unquote(password)) if secret}
