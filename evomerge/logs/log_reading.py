"""Lines of all logs of a study, in the order of their times."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from heapq import nlargest
from itertools import count
from pathlib import Path
from typing import Any

from evomerge.logs.log_file import KEPT, SUFFIX


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """A line of a log; see `LogFile.write`."""

    time: str
    level: str
    source: str
    text: str
    job: str | None = None
    trial: int | None = None


def log_lines(folder: Path, *, trial: int | None = None, last: int | None = None) -> list[LogLine]:
    """The lines of the logs in a folder, by time.

    Args:
        trial: only those about this trial of the search.
        last: so many at most, the latest ones.
    """
    found = (line for path in _files(folder) for line in _read(path) if trial is None or line.trial == trial)
    numbered = ((line.time, number, line) for line, number in zip(found, count(), strict=False))
    chosen = sorted(numbered) if last is None else sorted(nlargest(last, numbered))
    return [line for _, _, line in chosen]


def _files(folder: Path) -> Iterator[Path]:
    """The files of each source, the oldest first."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        for older in (path.with_name(f"{path.name}.{age}") for age in range(KEPT, 0, -1)):
            if older.is_file():
                yield older
        yield path


def _read(path: Path) -> Iterator[LogLine]:
    """The lines of a file. One that was cut short, or that somebody else wrote, is skipped; so is a file that has been
    deleted or renamed since it was found."""
    with suppress(FileNotFoundError), path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            line = _line(text)
            if line is not None:
                yield line


def _line(text: str) -> LogLine | None:
    try:
        content: Any = json.loads(text)
        job, trial = content.get("job"), content.get("trial")
        return LogLine(
            time=str(content["time"]),
            level=str(content["level"]),
            source=str(content["source"]),
            text=str(content["text"]),
            job=None if job is None else str(job),
            trial=trial if isinstance(trial, int) else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
