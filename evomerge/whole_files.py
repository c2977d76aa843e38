"""Files and folders that are on the disk whole or not at all, after a power cut too."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from evomerge.errors import noted


def write_whole(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Write a file aside, flush it to the disk, and replace the former one in one step.

    Args:
        content: of the file, in one or in several pieces.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.writing-{secrets.token_hex(4)}")
    try:
        with aside.open("wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


@contextmanager
def folder_in_place(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that takes its place when all has been written, and vanishes when something failed."""
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(4)
    folder = out.with_name(f".{out.name}.writing-{token}")
    folder.mkdir()
    try:
        yield folder
        for path in folder.rglob("*"):
            flush(path)
        flush_folder(folder)
        _take_place(folder, out, out.with_name(f".{out.name}.replaced-{token}"))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def flush(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Flush the entries of a folder, not their content."""
    with suppress(OSError):  # some network file systems know no fsync of directories
        flush(folder)


def _take_place(folder: Path, out: Path, aside: Path) -> None:
    if not out.exists() or not any(out.iterdir()):
        folder.replace(out)  # onto an empty directory or nothing: one atomic step
        return
    out.rename(aside)
    try:
        folder.rename(out)
    except BaseException as reason:
        with noted(reason, f"while {out} was put back"):
            aside.rename(out)
        raise
    shutil.rmtree(aside, ignore_errors=True)
