"""Progress of a search, for a terminal, for a log file, and for `evomerge status`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from rich.live import Live
from rich.text import Text

from evomerge.jobs import Progress
from evomerge.messages import duration, in_percent
from evomerge.report.terminal import Terminal, json_text
from evomerge.search.run import Listener
from evomerge.storage import attributes
from evomerge.study.status import Status, status_of
from evomerge.study.stored_search import StoredSearch

SCHEMA = 1
LOG_SECONDS = 10.0  # how often a log that is not a terminal gets a line at most
LOG_FILE = "evomerge.log"


@contextmanager
def listening(terminal: Terminal) -> Iterator[Listener]:
    """A listener for standard error: one live line on a terminal, JSON lines otherwise.

    What others print goes to a log in the run's folder as soon as there is one.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def log_in(folder: Path) -> None:
        terminal.log_to(folder / LOG_FILE)

    def bounding(show: Callable[[Status], None]) -> Callable[[Status], None]:
        def on_status(status: Status) -> None:
            terminal.bound_log()
            show(status)

        return on_status

    console = terminal.console
    if not console.is_terminal:
        lines = _Lines(terminal)
        yield Listener(
            on_phase=lines.phase,
            on_status=bounding(lines.status),
            on_progress=lines.progress,
            on_open=log_in,
            worker_output=True,
        )
        return
    # What others print is not rich's to redirect: it would come out above the live line.
    with Live(Text(), console=console, refresh_per_second=4, redirect_stdout=False, redirect_stderr=False) as live:
        yield Listener(
            on_phase=lambda text: console.print(Text(text, style="dim")),
            on_status=bounding(lambda status: live.update(status_line(status))),
            on_progress=lambda progress: live.update(progress_line(progress)),
            on_open=log_in,
            worker_output=True,
        )


def status_line(status: Status) -> Text:
    """done/total · best · cost · rate · time left · workers."""
    parts = [f"{status.finished}/{status.budget} trials"]
    if status.best is not None:
        parts.append(f"best {status.best:.4f} (trial {status.best_trial})")
    if status.dropped:
        parts.append(f"{status.dropped} dropped early")
    if status.failed:
        parts.append(f"{status.failed} failed")
    if status.forwards is not None:
        parts.append(f"{status.forwards:,.0f} forwards")
    if status.trials_per_hour is not None:
        parts.append(f"{status.trials_per_hour:.0f} trials/h")
    if status.seconds_left:
        parts.append(f"{duration(status.seconds_left)} left")
    if status.bar is not None and status.chance is not None and status.chance < 1:
        hope = "hardly passes" if status.is_futile else "may pass"
        parts.append(f"{hope} {status.bar[0]} ({in_percent(status.chance)})")
    workers = ", ".join(f"{count} {state}" for state, count in status.workers.items())
    if workers:
        parts.append(f"workers: {workers}" + (f", {status.restarts} restarted" if status.restarts else ""))
    if status.state == "paused":
        parts.append("paused: `evomerge resume` goes on")
    if status.ended:
        parts.append(status.ended)
    return Text(" · ".join(parts), style="bold" if status.state == "running" else "")


def progress_line(progress: Progress) -> Text:
    """step/total of a training, and its losses by name; of a measurement, the texts that have been read."""
    losses = "".join(f" · {name} {loss:.4f}" for name, loss in progress.losses.items())
    return Text(f"{progress.key}: {'step' if losses else 'text'} {progress.step}/{progress.steps}{losses}")


def status_document(stored: StoredSearch) -> dict[str, Any]:
    """The document of `evomerge status --json`, from an attribute that the controller writes: no trial is read."""
    content = stored.study.user_attrs.get(attributes.STATUS)
    counts = {"complete": 0, "dropped": 0, "failed": 0, "running": 0}
    if content is not None:
        status = status_of(content)
        complete = status.finished - status.failed - status.dropped
        counts = {
            "complete": complete,
            "dropped": status.dropped,
            "failed": status.failed,
            "running": status.running,
        }
    phase = stored.study.user_attrs.get(attributes.PHASE)
    return {"schema": SCHEMA, "study": stored.study.study_name, "trials": counts, "status": content, "phase": phase}


def status_text(document: dict[str, Any]) -> Text:
    """The same for a person."""
    counts = ", ".join(f"{count} {state}" for state, count in document["trials"].items() if count)
    text = Text(f"{document['study']}: {counts or 'no trials yet'}\n")
    if document["status"] is None:
        return text.append("the search has not begun to propose")
    status = status_of(document["status"])
    text.append(status_line(status))
    age = duration(max(0.0, time.time() - status.updated))
    if document["phase"] not in (None, "searching"):
        text.append(f"\n{document['phase']}")
    return text.append(f"\n{status.state}, process {status.pid} on {status.host}, last heard of {age} ago")


class _Lines:
    """JSON lines: one for every change that matters, and one in a while."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._last = 0.0
        self._state = ""

    def status(self, status: Status) -> None:
        now = time.monotonic()
        if status.state != self._state or now - self._last >= LOG_SECONDS:
            self._last, self._state = now, status.state
            self._tell("status", asdict(status))

    def progress(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.step == progress.steps or now - self._last >= LOG_SECONDS:
            self._last = now
            self._tell("training" if progress.losses else "measurement", asdict(progress))

    def phase(self, text: str) -> None:
        self._tell("phase", {"text": text})

    def _tell(self, event: str, content: dict[str, Any]) -> None:
        self._terminal.tell(json_text({"event": event, "time": round(time.time(), 3), **content}))
