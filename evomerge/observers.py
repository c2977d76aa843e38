"""Observers of a run, as search.yaml names them: who is told what happens, and the file that its numbers go to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from evomerge.documents import Frozen

Event = Literal["best", "failure", "end"]


class NotifySpec(Frozen):
    """Messages about a run, each one small JSON document.

    Attributes:
        command: a program and its arguments, which reads the document from its standard input.
        url: http:// or https://, which the document is posted to; `env:NAME` reads it from the environment.
        on: best, a new best candidate; failure, a candidate that failed; end, the end of a run.
    """

    command: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    url: str | None = None
    on: Annotated[tuple[Event, ...], Field(min_length=1)] = ("best", "failure", "end")

    @field_validator("url")
    @classmethod
    def _posted_to(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith("env:"):
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("must be http://HOST/…, https://HOST/… or env:NAME")
        return url

    @model_validator(mode="after")
    def _somebody(self) -> NotifySpec:
        if self.command is None and self.url is None:
            raise ValueError("name a command, a url, or both")
        return self

    def from_folder(self, directory: Path) -> NotifySpec:
        """With the program's path relative to a folder, where it is a path."""
        if self.command is None or "/" not in self.command[0]:
            return self
        program = str((directory / Path(self.command[0]).expanduser()).resolve())
        return self.model_copy(update={"command": (program, *self.command[1:])})


class MetricsSpec(Frozen):
    """Numbers of a run for monitoring.

    Attributes:
        textfile: a file that Prometheus' node exporter reads; its name ends in .prom.
    """

    textfile: str

    @field_validator("textfile")
    @classmethod
    def _is_read(cls, name: str) -> str:
        if not name.endswith(".prom"):
            raise ValueError("the node exporter reads only files whose names end in .prom")
        return name

    def from_folder(self, directory: Path) -> MetricsSpec:
        """With the path relative to a folder."""
        return self.model_copy(update={"textfile": str((directory / Path(self.textfile).expanduser()).resolve())})


def located(observers: Any, directory: Path) -> Any:
    """Either of the two above, or None, with paths relative to a folder."""
    return None if observers is None else observers.from_folder(directory)
