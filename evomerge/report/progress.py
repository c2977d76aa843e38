"""Progress of a search, for a terminal and for a log file."""

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
from evomerge.messages import plain_score
from evomerge.report.status_line import status_line
from evomerge.report.terminal import Terminal, json_text
from evomerge.search.run import Listener
from evomerge.study.status import Status

LOG_SECONDS = 10.0  # how often a log that is not a terminal gets a line at most
LOG_FILE = "evomerge.log"
_WORK = {"step": "training", "text": "measurement", "pass": "evaluation"}


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


def progress_line(progress: Progress) -> Text:
    """step/total of a training, and its losses by name; of a measurement, the texts that have been read; of an
    evaluation, the passes whose answers are kept."""
    losses = "".join(f" · {name} {plain_score(loss)}" for name, loss in progress.losses.items())
    return Text(f"{progress.key}: {progress.unit} {progress.step}/{progress.steps}{losses}")


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
            self._tell(_WORK[progress.unit], asdict(progress))

    def phase(self, text: str) -> None:
        self._tell("phase", {"text": text})

    def _tell(self, event: str, content: dict[str, Any]) -> None:
        self._terminal.tell(json_text({"event": event, "time": round(time.time(), 3), **content}))
