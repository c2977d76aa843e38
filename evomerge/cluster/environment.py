"""The environment that processes inherit which another library starts."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

# Ray reads it when it is imported, and again in each process of a cluster.
LOOPBACK: Final = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # a local cluster listens on 127.0.0.1 only


@contextmanager
def environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """These variables set, and those that are None unset; as before at the end of the block."""
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def without(secrets: Collection[str]) -> dict[str, None]:
    """Changes of the environment after which no variable is one of the secrets, or has a URL among them in it."""
    urls = [secret for secret in secrets if "://" in secret]
    return {name: None for name, value in os.environ.items() if value in secrets or any(url in value for url in urls)}
