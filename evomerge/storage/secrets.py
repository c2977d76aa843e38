"""The secret parts of a storage URL, which no other process needs to know."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, unquote

from evomerge.storage.url import local_file, resolve_url

_SECRET_OPTION: Final = re.compile("pass|pwd|secret|token", re.IGNORECASE)


def secrets_of(url: str) -> frozenset[str]:
    """The URL of a server, and the passwords in it, as they are written there and as they are. A file has none.

    Raises:
        InvalidInput: it is `env:NAME`, and the variable is not set.
    """
    url = resolve_url(url)
    if local_file(url) is not None:
        return frozenset()
    place, _, query = url.partition("://")[2].partition("?")
    password = place.rpartition("@")[0].partition(":")[2]
    options = [value for name, value in parse_qsl(query) if _SECRET_OPTION.search(name)]
    return frozenset(secret for secret in (url, password, unquote(password), *options) if secret)
