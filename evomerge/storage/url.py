"""Storage URLs: the environment variable or file behind one, and how one may be shown."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from evomerge.errors import InvalidInput

__all__ = [
    "SQLITE",
    "absolute_url",
    "file_of",
    "folder_of",
    "local_file",
    "placed_folder",
    "placed_url",
    "redact",
    "resolve_url",
    "run_directory",
    "scheme_of",
]


SQLITE: Final = ("sqlite", "sqlite+pysqlite")
_SECRET_OPTION: Final = re.compile(r"([?&][^=&]*(?:pass|pwd|secret|token)[^=&]*=)[^&]*", re.IGNORECASE)
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


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


def absolute_url(url: str, folder: Path | None = None) -> str:
    """The URL of a SQLite or journal file with an absolute path, so that it holds from any working directory.

    Args:
        folder: where a relative path begins, the working directory without one.

    Raises:
        InvalidInput: the folder has a ? in its path, with which options begin in the URL of a SQLite file.
    """
    file = local_file(url)
    if file is None:
        return url
    path = (folder or Path.cwd()) / file.expanduser()
    scheme, separator, rest = url.partition("://")
    if scheme_of(url) not in SQLITE:
        return f"{scheme if separator else 'journal'}:///{path}"
    if "?" in str(path):
        raise InvalidInput(
            f"{path} cannot be the path of a SQLite file, as a ? begins the options of its URL; rename the folder, or "
            "use a journal (storage: NAME.journal)"
        )
    return f"{scheme}:///{path}{'?' + rest.partition('?')[2] if '?' in rest else ''}"


def placed_url(url: str, folder: Path) -> str:
    """The URL that a file in `folder` names: its own path, and that of a file with a URL, begin there.

    What an environment variable names is no part of that file, and begins in the working directory.
    """
    if url.startswith("env:"):
        return url
    if url.startswith("file:"):
        return f"file:{folder / Path(url.removeprefix('file:')).expanduser()}"
    try:
        return absolute_url(url, folder) if scheme_of(url) in (*SQLITE, "journal") else url
    except InvalidInput:
        if "?" in str(folder):
            raise
        return url  # it names no file, and is refused when it is opened


def folder_of(text: str) -> Path:
    """The folder that a path or a file:// URL names. A path is taken as it is: it may have #, ?, % and spaces.

    Raises:
        InvalidInput: a URL of another kind.
    """
    if text.startswith("file:"):
        return Path(unquote(urlsplit(text).path))
    if _SCHEME.match(text):
        raise InvalidInput(f"artifacts {text!r}: only a folder or a file:// URL can be used")
    return Path(text).expanduser()


def placed_folder(text: str, folder: Path) -> str:
    """The path or URL of a folder that a file in `folder` names: a relative one begins there."""
    if _SCHEME.match(text) and not text.startswith("file:"):
        return text  # refused when it is opened
    return text if folder_of(text).is_absolute() else str(folder / folder_of(text))


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
