"""Observers of a run, as search.yaml names them: who is told what happens, the file that its numbers go to, and the
experiment trackers that log its trials."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from evomerge.documents import Frozen
from evomerge.storage.url import SQLITE, placed_url, scheme_of

Event = Literal["best", "failure", "end"]


class NotifySpec(Frozen):
    """Messages about a run, each one small JSON document.

    Attributes:
        command: a program and its arguments, which reads the document from its standard input.
        url: http:// or https://, which the document is posted to; `env:NAME` reads it from the environment.
        on: best, a new best candidate; failure, a candidate that failed; end, the end of a run.
    """

    command: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    url: str | None = Field(default=None, repr=False)  # whoever knows it can post
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


class MlflowSpec(Frozen):
    """An MLflow server or store that logs a search: one run, with a nested run for each trial.

    Attributes:
        uri: tracking URI as MLflow reads it; `env:NAME` reads it from the environment. Without it, MLflow's own choice.
        experiment: name of the experiment; that of the search without it.
    """

    uri: str | None = Field(default=None, min_length=1, repr=False)  # may hold a password
    experiment: Annotated[str, Field(min_length=1)] | None = None

    def from_folder(self, directory: Path) -> MlflowSpec:
        """With the path of a store relative to a folder, where the URI is one."""
        uri = self.uri
        if uri is None or uri.startswith(("env:", "databricks")):
            return self
        if scheme_of(uri) in SQLITE:
            placed = placed_url(uri, directory)
        else:
            placed = uri if ":" in uri else str((directory / Path(uri).expanduser()).resolve())
        return self.model_copy(update={"uri": placed})


class WandbSpec(Frozen):
    """A project of Weights & Biases that logs a search as one run. Key and server are in W&B's environment variables.

    Attributes:
        project: name of the project.
        entity: user or team; the default one of the key without it.
        mode: `offline` writes files that `wandb sync` uploads later. Without it, W&B's own choice.
    """

    project: Annotated[str, Field(min_length=1)] = "evomerge"
    entity: Annotated[str, Field(min_length=1)] | None = None
    mode: Literal["online", "offline"] | None = None


class TrackSpec(Frozen):
    """Experiment trackers that log the trials of a search and its verdict.

    Attributes:
        mlflow, wandb: settings of each that is used; {} for its defaults.
    """

    mlflow: MlflowSpec | None = None
    wandb: WandbSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _given(cls, content: object) -> object:
        """Refuse a tracker without settings: in YAML a forgotten {} would leave it out without a word."""
        empty = [name for name, value in content.items() if value is None] if isinstance(content, dict) else []
        if empty:
            raise ValueError(f"{empty[0]} has no settings; write {empty[0]}: {{}} for its defaults, or leave it out")
        if content == {}:
            raise ValueError("name mlflow, wandb, or both; mlflow: {} logs to MLflow by its defaults")
        return content

    @model_serializer(mode="wrap")
    def _used(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in write(self).items() if value is not None}

    def from_folder(self, directory: Path) -> TrackSpec:
        """With paths relative to a folder."""
        return self.model_copy(update={"mlflow": located(self.mlflow, directory)})

    @property
    def chosen(self) -> dict[str, MlflowSpec | WandbSpec]:
        """Name of a tracker -> its settings."""
        given = {"mlflow": self.mlflow, "wandb": self.wandb}
        return {name: spec for name, spec in given.items() if spec is not None}


def located(observers: Any, directory: Path) -> Any:
    """Any of those above that has paths, or None, with paths relative to a folder."""
    return None if observers is None else observers.from_folder(directory)
