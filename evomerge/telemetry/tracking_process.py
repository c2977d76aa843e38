"""The process of one tracker: it reads documents, one a line, and answers each with a reason where it was not logged.

Trackers' libraries wait for dead servers, patch the interpreter, and delay its end. Here none of it touches a search,
which ends this process where it does not answer. Run as `python -m evomerge.telemetry.tracking_process`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, Final

from evomerge.messages import first_line
from evomerge.telemetry.mlflow_tracker import MlflowTracker
from evomerge.telemetry.tracker import Conclusion, TrackedRun, Tracker, TrialEntry
from evomerge.telemetry.wandb_tracker import WandbTracker

RETRY_SECONDS: Final = 60.0  # between two attempts to open a run
LAST_SECONDS: Final = 60.0  # for the end of a run whose controller has died

TRACKERS: Final[Mapping[str, Callable[..., Tracker]]] = {"mlflow": MlflowTracker, "wandb": WandbTracker}


class TrackedSession:
    """The documents of one run, given to its tracker. A tracker that cannot be opened is tried again after a minute."""

    def __init__(self, tracker: Tracker, run: TrackedRun, clock: Callable[[], float] = time.monotonic) -> None:
        self._tracker = tracker
        self._run = run
        self._clock = clock
        self._is_open = False
        self._tried: float | None = None
        self._reason = ""

    def take(self, document: Mapping[str, Any]) -> str:
        """Log a document. Returns the reason where it is lost, else an empty text."""
        try:
            if not self._opened():
                return self._reason
            self._hand_on(document)
        except Exception as error:  # whatever a library, a proxy or a server does
            return first_line(error)[:300] or type(error).__name__
        return ""

    def _opened(self) -> bool:
        if not self._is_open and (self._tried is None or self._clock() - self._tried >= RETRY_SECONDS):
            self._tried = self._clock()
            try:
                self._tracker.open(self._run)
                self._is_open = True
            except Exception as error:
                self._reason = first_line(error)[:300]
        return self._is_open

    def _hand_on(self, document: Mapping[str, Any]) -> None:
        if "trial" in document:
            self._tracker.log(TrialEntry(**document["trial"]))
        elif "finding" in document:
            self._tracker.conclude(Conclusion(**document["finding"]))
        elif "end" in document:
            self._tracker.close(document["end"])


def serve(lines: Iterable[str], answers: IO[str], orphaned: Callable[[], None]) -> None:
    """Answer each line, the first of which names the tracker and the run, until there are no more.

    Args:
        orphaned: called where they stop without an end, before the run is ended.
    """
    given = iter(lines)
    first = json.loads(next(given))
    session = TrackedSession(TRACKERS[first["tracker"]](**first["settings"]), TrackedRun(**first["run"]))
    document: dict[str, Any] = {}
    _answer(answers, session.take(document))
    for line in given:
        document = json.loads(line)
        _answer(answers, session.take(document))
    if "end" not in document:  # the controller was killed
        orphaned()
        session.take({"end": "interrupted"})


def _answer(answers: IO[str], reason: str) -> None:
    answers.write(json.dumps(reason) + "\n")
    answers.flush()


def _end_soon() -> None:
    """End this process before long, whatever libraries wait for at its exit."""
    timer = threading.Timer(LAST_SECONDS, os._exit, (1,))
    timer.daemon = True
    timer.start()


def main() -> None:
    """Serve on the standard streams. What libraries print goes to standard error, where the log is."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, answers, _end_soon)


if __name__ == "__main__":
    main()
