"""The folder of a study's artifacts on this machine; of a store it is a working copy, which knows its origin.

A working copy is a cache: every file in it is written to the store before it is named, and fetched where it is missing.
So whoever is given a folder of artifacts need not know whether it is one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from evomerge.object_store.object_url import is_object_url, read_object_url
from evomerge.object_store.remote_folder import AT_ONCE, Patience, RemoteFolder
from evomerge.storage.url import folder_of
from evomerge.whole_files import write_whole

ORIGIN: Final = ".origin"  # the file of a working copy that names the store
FILES: Final = "files"  # below it: the files of recipes, by digest


def artifact_path(text: str) -> Path:
    """The folder on this machine of artifacts that a spec names by a path, a file:// or an s3:// URL.

    Raises:
        InvalidInput: a URL of another kind.
    """
    if not is_object_url(text):
        return folder_of(text)
    url = str(read_object_url(text))
    folder = _cache() / hashlib.sha256(url.encode()).hexdigest()[:32]
    if not (folder / ORIGIN).is_file():
        write_whole(folder / ORIGIN, url.encode())
    return folder


def _cache() -> Path:
    """The user's cache folder for artifacts, by the XDG rule."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evomerge" / "artifacts"


def is_inside(folder: Path, name: str) -> bool:
    """Whether a name leads to a place in a folder, in any folder: a storage may name any file, and so may a link."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        return False
    return (folder / path).resolve().is_relative_to(folder.resolve())


class ArtifactFolder:
    """A folder of artifacts with its origin, if it is a working copy.

    Args:
        path: of the folder on this machine; it need not exist.
        patience: with which the origin is waited for.

    Raises, every method that may reach the origin: see `RemoteFolder`.
    """

    def __init__(self, path: Path, patience: Patience = AT_ONCE) -> None:
        self.path = path
        self.origin: RemoteFolder | None = None
        self._fetched: set[str] = set()
        with suppress(FileNotFoundError, NotADirectoryError):
            url = (path / ORIGIN).read_text(encoding="utf-8")
            self.origin = RemoteFolder(read_object_url(url), patience)

    def __str__(self) -> str:
        """The place as a person knows it."""
        return str(self.path.resolve() if self.origin is None else self.origin.url)

    @property
    def files(self) -> Path:
        """The folder of the files of recipes."""
        return self.path / FILES

    def check(self) -> None:
        """Find out, before anything is done, whether the origin can be used. See `RemoteFolder.check`."""
        if self.origin is not None:
            self.origin.check()

    def find(self, name: str) -> Path | None:
        """The file of that name, fetched where it is not here yet; None where it is nowhere, or no name inside."""
        if not is_inside(self.path, name):
            return None
        path = (self.path / name).resolve()
        if path.is_file() or (self.origin is not None and self.origin.get(name, path)):
            return path
        return None

    def has_files(self, digests: Iterable[str]) -> bool:
        """Whether the files of a recipe are there, of a working copy on its origin: here they may be forgotten."""
        return all(self._has(_file(digest)) for digest in digests)

    def fetch_files(self, digests: Iterable[str]) -> None:
        """Have the files of a recipe here, those of them that are anywhere."""
        if self.origin is not None:
            for digest in set(digests) - self._fetched:
                if self.find(_file(digest)) is not None:
                    self._fetched.add(digest)

    def keep_files(self, digests: Iterable[str]) -> None:
        """Have the files of a recipe, which are here, on the origin too."""
        if self.origin is not None:
            for name in map(_file, digests):
                if not self.origin.has(name):
                    self.origin.put(name, self.path / name)

    def keep(self, name: str, content: bytes) -> None:
        """Write a file of that name, here and on the origin."""
        write_whole(self.path / name, content)
        if self.origin is not None:
            self.origin.put(name, self.path / name)

    def delete(self, name: str) -> None:
        """Delete a file, if there is one of that name, here and on the origin."""
        if self.origin is not None:
            self.origin.remove(name)
        (self.path / name).unlink(missing_ok=True)

    def _has(self, name: str) -> bool:
        return (self.path / name).is_file() if self.origin is None else self.origin.has(name)


def _file(digest: str) -> str:
    """The name of a file of a recipe."""
    return f"{FILES}/{digest}.safetensors"
