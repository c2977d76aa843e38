"""Requests to the controller of a study from another process: pause, stop, cancel.

They are small attributes of the sibling study `NAME/requests`, which is made with the first of them. The study itself
has one writer, who keeps it in memory; the sibling is written by whoever asks, and read by the controller in one query.
"""

from __future__ import annotations

import getpass
import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.storages import BaseStorage

from evomerge.storage import attributes

REQUESTS = "requests"


@dataclass(frozen=True, kw_only=True)
class SteeringRequests:
    """The requests of a study as they are at one moment.

    Attributes:
        paused_by: who asked for the pause, None where the search may propose.
        stop: the latest request to stop, with an `id` of its own and the `host` and `pid` of the controller that it is
            addressed to; None where there was none.
        cancelled: numbers of the trials that are to end.
    """

    paused_by: str | None = None
    stop: Mapping[str, Any] | None = None
    cancelled: frozenset[int] = frozenset()


class RequestBook:
    """The requests of one study.

    Args:
        storage: that of the study, as the controller or the requester has opened it.
        name: of the study, not of its sibling.
    """

    def __init__(self, storage: BaseStorage, name: str) -> None:
        self._storage = storage
        self._name = f"{name}/{REQUESTS}"
        self._id: int | None = None

    def read(self) -> SteeringRequests:
        """The requests; none where nobody ever asked for anything. The storage is asked once."""
        attrs = self._attributes()
        pause, stop = attrs.get(attributes.PAUSE), attrs.get(attributes.STOP)
        marks = (key.removeprefix(f"{attributes.CANCEL}:") for key, wanted in attrs.items() if wanted is True)
        return SteeringRequests(
            paused_by=str(pause.get("by", "somebody")) if isinstance(pause, dict) else None,
            stop=stop if isinstance(stop, dict) else None,
            cancelled=frozenset(int(mark) for mark in marks if mark.isdecimal()),
        )

    def pause(self) -> None:
        self._write(attributes.PAUSE, {"by": _requester(), "since": _now()})

    def resume(self) -> None:
        self._write(attributes.PAUSE, None)

    def stop(self, host: str | None, pid: int | None) -> None:
        """Ask the controller of this host and process to stop, or whichever runs where they are not known."""
        request = {"id": uuid.uuid4().hex, "host": host, "pid": pid, "by": _requester(), "since": _now()}
        self._write(attributes.STOP, request)

    def cancel(self, trial: int) -> None:
        self._write(f"{attributes.CANCEL}:{trial}", True)

    def clear_stop(self) -> None:
        """Take the request to stop back, so that the next controller does not find it."""
        self._write(attributes.STOP, None)

    def _attributes(self) -> dict[str, Any]:
        if self._id is None:
            try:
                self._id = self._storage.get_study_id_from_name(self._name)
            except KeyError:
                return {}
        try:
            return self._storage.get_study_user_attrs(self._id)
        except KeyError:  # somebody has deleted it
            self._id = None
            return {}

    def _write(self, key: str, value: object) -> None:
        study = optuna.create_study(
            storage=self._storage, study_name=self._name, direction="maximize", load_if_exists=True
        )
        study.set_user_attr(key, value)


def _requester() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in some containers
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
