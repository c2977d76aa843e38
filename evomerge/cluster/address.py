"""Addresses of Ray clusters, looked at without Ray: which would end this process after a minute at a wrong one."""

from __future__ import annotations

import socket
from typing import Final

from evomerge.errors import Interrupted, InvalidInput
from evomerge.messages import last_line

_SECONDS: Final = 2.0


def refuse_unanswered(address: str) -> None:
    """Refuse HOST:PORT where nothing listens.

    Raises:
        InvalidInput: it is no address, or of an unknown host.
        Interrupted: nothing listens there yet, or any more.
    """
    if address == "auto":
        return
    host, separator, port = address.rpartition(":")
    if not separator or "/" in host or not port.isdecimal():
        raise InvalidInput(
            f"{address!r} is no address of a Ray cluster: write auto, or HOST:PORT of its head, whose port is 6379 by "
            "default"
        )
    try:
        socket.getaddrinfo(host.strip("[]"), int(port))
    except (OSError, OverflowError) as error:
        raise InvalidInput(f"no Ray cluster answers at {address!r}: {last_line(error)}") from None
    if not listens(address):
        raise Interrupted(f"no Ray cluster answers at {address!r}; run the same command again when it is up")


def listens(address: str) -> bool:
    """Whether somebody accepts connections at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS).close()
    except OSError:
        return False
    return True
