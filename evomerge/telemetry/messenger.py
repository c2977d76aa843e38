"""Delivery of messages to a program or a server, in a thread of its own: a run neither waits for it nor fails by it."""

from __future__ import annotations

import base64
import json
import logging
import os
import queue
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from http.client import HTTPMessage
from typing import IO, Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from evomerge.errors import InvalidInput
from evomerge.messages import counted
from evomerge.observers import NotifySpec

TIMEOUT: Final = 5.0  # seconds for one delivery, for all at the end of a run, and for the very last one
_WAITING: Final = 100  # messages; further ones are dropped

_log = logging.getLogger(__name__)


class Messenger:
    """Delivers documents as the spec says, in their order. What cannot be delivered is logged once and dropped.

    Raises:
        InvalidInput: the variable that the URL should be in is not set.
    """

    def __init__(self, spec: NotifySpec) -> None:
        self._command = spec.command
        self._url = None if spec.url is None else _resolved(spec.url)
        self._queue: queue.Queue[Mapping[str, Any] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._deliver_all, name="evomerge-messenger", daemon=True)
        self._failed: set[str] = set()
        self._thread.start()

    def send(self, document: Mapping[str, Any]) -> None:
        """Deliver a document soon."""
        try:
            self._queue.put_nowait(document)
        except queue.Full:
            self._complain("messages", "so many wait that new ones are dropped")

    def close(self) -> None:
        """Wait for the last deliveries, for `TIMEOUT` seconds, and as long again for the last message alone.

        It is the end of the run, which matters more than those before it. How many were dropped for it is logged.
        """
        with suppress(queue.Full):
            self._queue.put(None, timeout=TIMEOUT)
            self._thread.join(TIMEOUT)
        if not self._thread.is_alive():
            return
        waiting = self._take_waiting()
        for each in (*waiting[-1:], None):
            self._queue.put(each)
        self._thread.join(TIMEOUT)
        lost = len(waiting[:-1])
        if self._thread.is_alive():
            lost += self._queue.qsize()  # of which the None at its end counts for the one under way
        if lost:
            _log.warning("%s not delivered at the end of the run: deliveries take too long", counted(lost, "message"))

    def _take_waiting(self) -> list[Mapping[str, Any]]:
        """The messages that wait, which are not delivered then."""
        waiting = []
        with suppress(queue.Empty):
            while True:
                waiting.append(self._queue.get_nowait())
        return [each for each in waiting if each is not None]

    def _deliver_all(self) -> None:
        while (document := self._queue.get()) is not None:
            content = json.dumps(document).encode()
            if self._command is not None:
                self._attempt(f"the command {self._command[0]}", partial(_run, self._command, content))
            if self._url is not None:
                self._attempt(f"the server {urlsplit(self._url).hostname}", partial(_post, self._url, content))

    def _attempt(self, receiver: str, deliver: Callable[[], None]) -> None:
        try:
            deliver()
        except Exception as error:  # whatever a server, a proxy or a program does is no reason to end a search
            self._complain(receiver, _reason(error))

    def _complain(self, receiver: str, reason: str) -> None:
        if receiver not in self._failed:
            self._failed.add(receiver)
            _log.warning("%s was not notified: %s; this is said once", receiver, reason)


class _NoRedirect(HTTPRedirectHandler):
    """A redirected POST would become a GET without the document."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


def _post(url: str, content: bytes) -> None:
    parts = urlsplit(url)
    headers = {"Content-Type": "application/json"}
    login, _, place = parts.netloc.rpartition("@")
    if login:  # urllib would take its password for a port, and name it in an error
        headers["Authorization"] = f"Basic {base64.b64encode(unquote(login).encode()).decode()}"
    request = Request(parts._replace(netloc=place).geturl(), data=content, headers=headers, method="POST")
    with build_opener(_NoRedirect).open(request, timeout=TIMEOUT):
        pass


def _run(command: Sequence[str], content: bytes) -> None:
    subprocess.run(
        command,
        input=content,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=TIMEOUT,
        check=True,
    )


def _reason(error: Exception) -> str:
    """The reason why nothing was delivered. The text of a foreign error may hold parts of the URL or of the command."""
    if isinstance(error, HTTPError):
        return f"it answers with status {error.code}"
    if isinstance(error, subprocess.CalledProcessError):
        return f"it ends with exit status {error.returncode}"
    cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
    return (isinstance(cause, OSError) and cause.strerror) or type(cause).__name__


def _resolved(url: str) -> str:
    if not url.startswith("env:"):
        return url
    name = url.removeprefix("env:")
    value = os.environ.get(name)
    if not value or urlsplit(value).scheme not in ("http", "https"):
        raise InvalidInput(
            f"notify.url is {url!r}, but the environment variable {name!r} holds no http:// or https:// URL; "
            "export it, or leave notify.url out"
        )
    return value
