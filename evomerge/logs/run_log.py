"""The controller's log: the events of a run, and the warnings of evomerge, each with its trial."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from evomerge.logs.log_file import LogFile

CONTROLLER: Final = "controller"

# Its events are for the log of the study: whoever wants them elsewhere adds a handler of his own.
_events = logging.getLogger("evomerge.run")
_events.setLevel(logging.INFO)
_events.propagate = False
_events.addHandler(logging.NullHandler())


def note_event(text: str, *, job: str | None = None, level: int = logging.INFO) -> None:
    """Note an event of the run in the log of its study, where one is kept.

    Args:
        job: key of the job that it is about: a trial's is STUDY/NUMBER.
    """
    _events.log(level, text, extra={"job": job})


@contextmanager
def controller_log(folder: Path) -> Iterator[None]:
    """A block whose events, and warnings of evomerge, are kept in a folder, and the error that ends it."""
    log = LogFile(folder, CONTROLLER)
    handler = _Events(log)
    loggers = (_events, logging.getLogger("evomerge"))
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    except BaseException:
        log.write(traceback.format_exc(), level="error")
        raise
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


class _Events(logging.Handler):
    def __init__(self, log: LogFile) -> None:
        super().__init__(logging.INFO)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.write(self.format(record), level=record.levelname.lower(), job=getattr(record, "job", None))
