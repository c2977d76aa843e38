"""Threshold tables on disk, shared by the workers of a machine and by all later runs on the same sources.

A file holds the tables of some scopes of one pair of models, and its name says which pair, by content. It is written
whole, verified when it is opened, and mapped: the workers of a machine read the same pages. Two workers that make the
same tables write the same file. What is damaged, removed or not writable is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

from evomerge.native.compiled_loops import default_folder
from evomerge.passes import magnitude_sorting, magnitude_tables
from evomerge.passes.magnitude_tables import Table
from evomerge.whole_files import write_whole

logger = logging.getLogger(__name__)

LIMIT = 4 << 30  # bytes of all files; beyond it those that were not used for longest are removed
ALIGNMENT = 8
_DIGEST = 32  # bytes of SHA-256

Scope = tuple[str, ...]


class TableStore:
    """The files of one folder."""

    def __init__(self, folder: Path | None = None, limit: int = LIMIT) -> None:
        """`folder` is by default one in the user's cache; it need not exist."""
        self._folder = folder or default_folder().with_name("threshold-tables")
        self._limit = limit
        self._seen: dict[str, set[str]] = {}

    def new_tables(self, pair: str) -> dict[str, Table]:
        """The tables of a pair in all files that were not there at the last call, by `scope_digest`."""
        seen, found = self._seen.setdefault(pair, set()), {}
        with suppress(OSError):  # no folder yet
            for path in sorted(self._folder.glob(f"{pair}-*")):
                if path.name not in seen:
                    seen.add(path.name)
                    found.update(self._read(path))
        return found

    def save(self, pair: str, tables: Mapping[str, Table]) -> dict[str, Table]:
        """Write a file with these tables, by `scope_digest`.

        Returns:
            The same tables mapped from the file; empty where there is none, and the next worker makes them again.
        """
        content = _packed(tables)
        path = self._folder / f"{pair}-{content[:12].hex()}"
        self._seen.setdefault(pair, set()).add(path.name)
        try:
            write_whole(path, content)
            self._remove_excess()
        except OSError as error:
            logger.info("threshold tables are not kept: %s", error)
            return {}
        return self._read(path)

    def _read(self, path: Path) -> dict[str, Table]:
        try:
            with path.open("rb") as file:
                tables = _unpacked(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            os.utime(path)  # used now
            return tables
        except (OSError, ValueError) as error:
            logger.info("%s is not read: %s", path, error)
            with suppress(OSError):
                path.unlink()
            return {}

    def _remove_excess(self) -> None:
        files = []
        for path in self._folder.iterdir():
            with suppress(OSError):  # removed by another worker
                files.append((path.stat().st_mtime, path.stat().st_size, path))
        held = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if held <= self._limit:
                return
            path.unlink(missing_ok=True)
            held -= size


def pair_digest(base: str, source: str) -> str:
    """Name of the tables of a source's task vector, from the fingerprints of the source and of the base."""
    return hashlib.sha256(f"{base} {source} {_definition_digest()}".encode()).hexdigest()[:32]


def scope_digest(scope: Scope) -> str:
    """Name of the table of a scope among those of a pair."""
    return hashlib.sha256(json.dumps(scope).encode()).hexdigest()[:32]


@cache
def _definition_digest() -> str:
    """Of the files that determine the bits of a table: a table of another release is another table."""
    files = (Path(magnitude_tables.__file__), Path(magnitude_sorting.__file__), magnitude_sorting.SOURCE)
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _packed(tables: Mapping[str, Table]) -> bytes:
    """SHA-256 of the rest, length of the directory, directory, and the arrays one after another."""
    arrays: list[bytes | memoryview] = []  # views: the tables of a worker are hundreds of megabytes
    directory, at = {}, 0
    for scope, table in sorted(tables.items()):
        directory[scope] = [at, len(table.ranks), table.ranks.dtype.name]
        for array in (table.ranks, table.values):
            padding = bytes(-array.nbytes % ALIGNMENT)
            arrays += [array.view(np.uint8).data, padding]
            at += array.nbytes + len(padding)
    header = _padded(json.dumps(directory).encode(), b" ")
    body = [len(header).to_bytes(ALIGNMENT, "little"), header, *arrays]
    digest = hashlib.sha256()
    for part in body:
        digest.update(part)
    return b"".join([digest.digest(), *body])


def _padded(content: bytes, by: bytes) -> bytes:
    return content + by * (-len(content) % ALIGNMENT)


def _unpacked(content: mmap.mmap) -> dict[str, Table]:
    """
    Raises:
        ValueError: the content is not what `_packed` gave.
    """
    view = memoryview(content)
    if len(view) < _DIGEST + ALIGNMENT or hashlib.sha256(view[_DIGEST:]).digest() != bytes(view[:_DIGEST]):
        raise ValueError("its checksum is wrong")
    start = _DIGEST + ALIGNMENT + int.from_bytes(view[_DIGEST : _DIGEST + ALIGNMENT], "little")
    directory: Mapping[str, Sequence[object]] = json.loads(bytes(view[_DIGEST + ALIGNMENT : start]))
    tables = {}
    for scope, (at, count, dtype) in directory.items():
        first = start + int(str(at))
        ranks = np.frombuffer(view, str(dtype), int(str(count)), first)
        first += -(-ranks.nbytes // ALIGNMENT) * ALIGNMENT
        tables[scope] = Table(ranks, np.frombuffer(view, np.float32, int(str(count)), first))
    return tables
