"""Storage URLs: the environment variable or file behind one, and how one may be shown."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from evomerge.errors import InvalidInput

__all__ = ["SQLITE", "absolute_url", "file_of", "local_file", "redact", "resolve_url", "run_directory", "scheme_of"]


SQLITE: Final = ("sqlite", "sqlite+pysqlite")
_SECRET_OPTION: Final = re.compile(r"([?&][^=&]*(?:pass|pwd|secret|token)[^=&]*=)[^&]*", re.IGNORECASE)


def resolve_url(url: str) -> str:
    """The URL itself; of `env:NAME`, the content of that environment variable.

    Raises:
        InvalidInput: the variable is not set.
    """
    if not url.startswith("env:"):
        return url
    name = url.removeprefix("env:")
    value = os.environ.get(name)
    if not value:
        raise InvalidInput(
            f"the storage is {url!r}, but the environment variable {name!r} is not set; export the URL in it"
        )
    return value


def redact(url: str) -> str:
    """The URL as it may be shown: passwords, also those in its query, are ***.

    It may be malformed: whatever could belong to a password, such as a part after an @ that should have been encoded,
    is hidden too.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme_of(url) in (*SQLITE, "journal"):
        return url
    credentials, at, place = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    shown = f"{user}:***@{place}" if colon else f"{credentials}{at}{place}"
    return f"{scheme}://" + _SECRET_OPTION.sub(r"\1***", shown)


def local_file(url: str) -> Path | None:
    """The SQLite or journal file behind a URL, None for servers."""
    url = resolve_url(url)
    return file_of(url) if scheme_of(url) in (*SQLITE, "journal") else None


def absolute_url(url: str) -> str:
    """The URL of a SQLite or journal file with an absolute path, so that it holds from any working directory."""
    file = local_file(url)
    if file is None:
        return url
    scheme, separator, rest = url.partition("://")
    options = "?" + rest.partition("?")[2] if scheme_of(url) in SQLITE and "?" in rest else ""
    return f"{scheme if separator else 'journal'}:///{file.absolute()}{options}"


def run_directory(url: str, name: str) -> Path:
    """Folder of all that a search stores outside its study: that of the file, or `runs/<name>` for servers."""
    file = local_file(url)
    return Path("runs") / name if file is None else file.parent


def scheme_of(url: str) -> str:
    """The scheme in small letters; a path without one is a journal if its name ends like one, else ""."""
    scheme, separator, _ = url.partition("://")
    if separator:
        return scheme.lower()
    return "journal" if url.endswith((".log", ".journal")) else ""


def file_of(url: str) -> Path:
    """`sqlite:///FILE`, `journal:///FILE` or a path. As in SQLAlchemy, an absolute FILE makes it four slashes."""
    _, separator, rest = url.partition("://")
    path = (rest[1:] if rest.startswith("/") else "") if separator else url
    path = path.partition("?")[0] if scheme_of(url) in SQLITE else path
    if not path or path == ":memory:" or path.startswith("file:"):
        raise InvalidInput(
            f"storage {url!r} names no file: write {scheme_of(url)}:///FILE, with four slashes if FILE is absolute "
            f"(a study in memory could not be resumed)"
        )
    return Path(path)
