"""A log file of JSON lines that stays small: when it is full it is renamed, and the oldest one goes."""

from __future__ import annotations

import json
import re
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 1_000_000  # of one file
KEPT: Final = 3  # older files beside it: NAME.log.1 is the latest of them
LONGEST_TEXT: Final = 20_000  # characters of one line; of a longer text the end, where an error is
SUFFIX: Final = ".log"

_OF_TRIAL: Final = re.compile(r"[^/]+/(?P<search>\d{1,12})|[^/]+/held-out/trial (?P<held_out>\d{1,12})")


class LogFile:
    """Appends lines to a file. What cannot be written is lost: a log is never the reason why a run ends.

    Args:
        folder: of the logs of a study; it is made with the first line. None: nothing is kept.
        source: name of the worker, or "controller", which also names the file.
    """

    def __init__(self, folder: Path | None, source: str) -> None:
        self.source = source
        name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in source)
        self._path = None if folder is None else folder / f"{name}{SUFFIX}"
        self._lock = threading.Lock()

    def write(self, text: str, *, level: str = "info", job: str | None = None) -> None:
        """Append a line.

        Args:
            level: info, warning or error; output for what a job prints.
            job: key of the job that it is about: a trial's is STUDY/NUMBER.
        """
        if self._path is None:
            return
        content = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": level,
            "source": self.source,
            **({} if job is None else {"job": job, "trial": trial_of(job)}),
            "text": text[-LONGEST_TEXT:],
        }
        line = json.dumps(content, ensure_ascii=True).encode() + b"\n"
        with self._lock, suppress(OSError):
            _append(self._path, line)


def trial_of(job: str) -> int | None:
    """The number of the trial of the search whose job this is, on the held-out items too; None for other jobs."""
    found = _OF_TRIAL.fullmatch(job)
    return None if found is None else int(found["search"] or found["held_out"])


def _append(path: Path, line: bytes) -> None:
    """Append a line in one write; the file is not kept open, so that it may be deleted at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size + len(line) > MAX_BYTES:
        _rotate(path)
    with path.open("ab", buffering=0) as file:
        file.write(line)


def _rotate(path: Path) -> None:
    for age in range(KEPT, 0, -1):
        older = path if age == 1 else path.with_name(f"{path.name}.{age - 1}")
        if older.exists():
            older.replace(path.with_name(f"{path.name}.{age}"))
