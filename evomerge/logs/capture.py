"""Capture of what Python code prints and logs while a job is done. It still reaches where it went before."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast

from evomerge.logs.log_file import LONGEST_TEXT, LogFile

# The jobs that this process is doing, the current one last. Every tee asks here: libraries that set up their logging in
# one job write to the tee of that job for as long as the process lasts.
_jobs: list[tuple[LogFile, str]] = []


@contextmanager
def captured(log: LogFile, job: str) -> Iterator[None]:
    """A block whose printed lines, and logged warnings and errors, are lines of the log too.

    Not covered: compiled code and other processes, which write to the file descriptors.
    """
    out, err = _tee_of(sys.stdout), _tee_of(sys.stderr)
    records = _JobRecords()
    root = logging.getLogger()
    current = (log, job)
    _jobs.append(current)
    root.addHandler(records)
    try:
        with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, err)):
            yield
    finally:
        root.removeHandler(records)
        for tee in (out, err):
            tee.end()
        _jobs.remove(current)


def _write(text: str, level: str) -> None:
    if _jobs:
        log, job = _jobs[-1]
        log.write(text, level=level, job=job)


class _Tee:
    """A text stream that also writes its lines to the log of the current job. The stream itself answers all else."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, rest = (self._rest + text).split("\n")
        for line in lines:
            _keep(line)
        self._rest = _remaining(rest)[-LONGEST_TEXT:]
        if self._stream is not None:
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def end(self) -> None:
        """Write the last line, which has no end."""
        _keep(self._rest)
        self._rest = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _tee_of(stream: TextIO | _Tee | None) -> _Tee:
    """A tee on a stream, which is one already within another job."""
    return stream if isinstance(stream, _Tee) else _Tee(stream)


def _keep(line: str) -> None:
    last = _remaining(line).rstrip("\r")
    if last.strip():
        _write(last, "output")


def _remaining(line: str) -> str:
    """The part of a line that is not yet overwritten: of a progress bar its latest state."""
    body = line.rstrip("\r")
    return body.rpartition("\r")[2] + ("\r" if body != line else "")


class _JobRecords(logging.Handler):
    """Warnings and errors that are logged, where no other handler prints them to a tee."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if not any(_prints(handler, record) for handler in _handlers_of(record.name)):
            _write(self.format(record), record.levelname.lower())


def _handlers_of(name: str) -> Iterator[logging.Handler]:
    """The handlers that a record of a logger reaches."""
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None


def _prints(handler: logging.Handler, record: logging.LogRecord) -> bool:
    """Whether a handler prints a record to a tee. Of one with filters nobody knows: twice is better than never."""
    to_tee = isinstance(getattr(handler, "stream", None), _Tee)
    return to_tee and record.levelno >= handler.level and not handler.filters
