"""Files and folders that are on the disk whole or not at all, after a power cut too."""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from evomerge.errors import noted

FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of a file that cannot be used at present, since a disk or a network file system fails.
OUT_OF_ORDER: Final = (
    *FULL,
    errno.EIO,
    errno.EROFS,
    errno.EMFILE,
    errno.ENFILE,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ESHUTDOWN,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
)
_PIECE: Final = 1 << 24
_ASIDE: Final = ".replacing-"  # in the names of files that take the place of another one where a check holds


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Name a file in the error of a full disk, where it names none: a call that writes knows no names."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            error.filename = str(path)
        raise


def write_whole(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Write a file aside, flush it to the disk, and replace the former one in one step.

    Args:
        content: of the file, in one or in several pieces.

    Raises:
        OSError: it cannot be written; IsADirectoryError: there is a folder in its place.
    """
    if path.is_dir():  # said of the path, before a file beside it is made; "" and "." have no name for that one
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.writing-{secrets.token_hex(4)}")
    try:
        with full_disk_named(path), aside.open("wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def pieces(path: Path) -> Iterator[bytes]:
    """The content of a file for `write_whole`, of which a piece at a time is in memory."""
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def replace_where(path: Path, fill: Callable[[Path], object], check: Callable[[], bool]) -> bool:
    """Replace a file where a check holds; False where it does not, or another process replaces the file meanwhile.

    A process may be stopped for any length between its check and the replacement. Therefore one whose check would make
    all others fail calls `discard_asides` before it relies on the file: theirs can then not take its place any more.

    Args:
        fill: writes the new file.
    """
    aside = path.with_name(f".{path.name}{_ASIDE}{secrets.token_hex(4)}")
    try:
        fill(aside)
        try:
            flush(aside)
            if not check():
                return False
            aside.replace(path)
        except FileNotFoundError:  # somebody has discarded it
            return False
    finally:
        aside.unlink(missing_ok=True)
    flush_folder(path.parent)
    return True


def discard_asides(path: Path) -> None:
    """Delete the files of others that would replace this one by `replace_where`, and those of crashes."""
    for aside in path.parent.glob(f".{glob.escape(path.name)}{_ASIDE}*"):
        aside.unlink(missing_ok=True)


@contextmanager
def folder_in_place(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that takes its place when all has been written, and vanishes when something failed."""
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(4)
    folder = out.with_name(f".{out.name}.writing-{token}")
    folder.mkdir()
    try:
        with full_disk_named(out):
            yield folder
            for path in folder.rglob("*"):
                flush_folder(path) if path.is_dir() else flush(path)
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
