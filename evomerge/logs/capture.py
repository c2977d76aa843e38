"""Capture of what Python code prints and logs while a job is done. It still reaches where it went before."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast

from evomerge.logs.log_file import LogFile


@contextmanager
def captured(log: LogFile, job: str) -> Iterator[None]:
    """A block whose printed lines, and logged warnings and errors, are lines of the log too.

    Not covered: compiled code and other processes, which write to the file descriptors.
    """
    out, err = _Tee(sys.stdout, log, job), _Tee(sys.stderr, log, job)
    records = _JobRecords(log, job)
    root = logging.getLogger()
    root.addHandler(records)
    try:
        with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, err)):
            yield
    finally:
        root.removeHandler(records)
        for tee in (out, err):
            tee.end()


class _Tee:
    """A text stream that also writes its lines to a log. Everything else is asked of the stream itself."""

    def __init__(self, stream: TextIO | None, log: LogFile, job: str) -> None:
        self._stream = stream
        self._log = log
        self._job = job
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._keep(line)
        if self._stream is not None:
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def end(self) -> None:
        """Write the last line, which has no end."""
        self._keep(self._rest)
        self._rest = ""

    def _keep(self, line: str) -> None:
        last = line.rstrip("\r").rpartition("\r")[2]  # of a progress bar the line that remains
        if last.strip():
            self._log.write(last, level="output", job=self._job)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _JobRecords(logging.Handler):
    """Warnings and errors that are logged."""

    def __init__(self, log: LogFile, job: str) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self._job = job
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self._log.write(self.format(record), level=record.levelname.lower(), job=self._job)
