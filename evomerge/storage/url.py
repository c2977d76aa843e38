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
    "check_server_url",
    "described_url",
    "file_of",
    "folder_of",
    "is_reference",
    "local_file",
    "placed_folder",
    "placed_url",
    "redact",
    "resolve_url",
    "run_directory",
    "scheme_of",
    "sibling_url",
]


SQLITE: Final = ("sqlite", "sqlite+pysqlite")

_LONGEST: Final = 10_000  # characters of a file that holds a URL
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_BEFORE_SLASHES: Final = re.compile(_SCHEME.pattern + "://")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What follows the scheme of a server. Whatever is read in another way by another parser is not one: then nobody can say
# where the password ends.
_SERVER: Final = re.compile(
    r"([^\s:@/?#]*(:[^\s:@/?#]*)?@)?"  # USER:PASSWORD@
    r"([\w.-]+|\[[0-9A-Fa-f:.]+\])?(:\d+)?"  # HOST:PORT
    r"(/(?P<database>[^\s:@?#]*))?(\?[^\s@]*)?"
)
_PLAIN_NAME: Final = re.compile(r"[\w.-]+")


def is_reference(url: str) -> bool:
    """Whether a URL says only where the URL is: `env:NAME` or `file:PATH`."""
    return url.startswith("env:") or (url.startswith("file:") and "://" not in url)


def resolve_url(url: str) -> str:
    """The URL itself; of `env:NAME`, the content of that environment variable; of `file:PATH`, that of the file.

    Raises:
        InvalidInput: the variable is not set, or the file cannot be read or is empty.
    """
    if not is_reference(url):
        return url
    kind, _, name = url.partition(":")
    value = _variable(name) if kind == "env" else _content(Path(name))
    if is_reference(value):
        raise InvalidInput(f"the storage is {redact(url)!r}, which holds another reference; it has to hold the URL")
    return value


def _variable(name: str) -> str:
    if not _VARIABLE.fullmatch(name):
        raise InvalidInput("the storage begins with 'env:', which needs the name of an environment variable: env:NAME")
    value = os.environ.get(name)
    if not value:
        raise InvalidInput(
            f"the storage is 'env:{name}', but the environment variable {name!r} is not set; export the URL in it"
        )
    return value


def _content(path: Path) -> str:
    """The URL in a file. No error shows any of it."""
    try:
        with path.open(encoding="utf-8") as file:
            content = file.read(_LONGEST + 1).rstrip("\r\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise InvalidInput(f"the storage is 'file:{path}', which cannot be read: {reason}") from None
    if not content or len(content) > _LONGEST or "\n" in content:
        raise InvalidInput(f"the storage is 'file:{path}', which has to hold one line, the URL, and nothing else")
    return content


def redact(url: str) -> str:
    """The URL as it may be shown: of a server its scheme and database, and nothing of user, password, host and options.

    Where it is malformed, nobody can say where a password ends: then not even the database is shown.
    """
    if is_reference(url):
        kind, _, name = url.partition(":")
        return url if kind == "file" or _VARIABLE.fullmatch(name) else "env:***"
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "***" if ":" in url or "@" in url else url
    if not _SCHEME.fullmatch(scheme):
        return "***"
    if scheme.lower() in (*SQLITE, "journal") and rest.startswith("/"):
        return url
    found = _SERVER.fullmatch(rest)
    database = (found["database"] if found else None) or ""
    return f"{scheme}://***/{database}" if _PLAIN_NAME.fullmatch(database) else f"{scheme}://***"


def described_url(url: str) -> str:
    """A storage in a sentence."""
    return f"the storage {redact(url)}"


def check_server_url(url: str) -> None:
    """Refuse the URL of a server that can be read in more than one way.

    Raises:
        InvalidInput: a part of it is not encoded, or its port is no number.
    """
    if not _SERVER.fullmatch(url.partition("://")[2]):
        raise InvalidInput(
            f"cannot read the storage URL {redact(url)!r}: it has to be "
            f"{scheme_of(url)}://USER:PASSWORD@HOST:PORT/NAME, and special characters in user and password must be "
            "percent-encoded (@ is %40, : is %3A, / is %2F)"
        )


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
    if is_reference(url):
        if url.startswith("env:"):
            return url
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
    if _BEFORE_SLASHES.match(text):
        raise InvalidInput(f"artifacts {redact(text)!r}: only a folder, a file:// or an s3:// URL can be used")
    return Path(text).expanduser()


def placed_folder(text: str, folder: Path) -> str:
    """The path or URL of a folder that a file in `folder` names: a relative one begins there."""
    if _BEFORE_SLASHES.match(text) and not text.startswith("file:"):
        return text  # refused when it is opened
    return text if folder_of(text).is_absolute() else str(folder / folder_of(text))


def run_directory(url: str, name: str) -> Path:
    """Folder of all that a search stores outside its study: that of the file, or `runs/<name>` for servers."""
    file = local_file(url)
    return Path("runs") / name if file is None else file.parent


def sibling_url(url: str, name: str, other: str) -> str | None:
    """URL of the file of another search, where the file of this one is in a folder that is named after it.

    None for servers, and for files elsewhere: nothing says where the other search's file is.
    """
    file = local_file(url)
    if file is None or file.parent.name != name:
        return None
    scheme = scheme_of(resolve_url(url))
    return f"{scheme}:///{file.parent.parent / other / file.name}"


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
            f"storage {redact(url)!r} names no file: write {scheme_of(url)}:///FILE, with four slashes if FILE is "
            "absolute (a study in memory could not be resumed)"
        )
    return Path(path)
