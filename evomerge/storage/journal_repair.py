"""Repair of an Optuna journal file whose writer was killed in the middle of a line.

Optuna reads over a torn last line, but appends the next entry to it, and from then on nobody can open the file.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from functools import partial
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from optuna.storages.journal import JournalFileSymlinkLock

from evomerge.errors import InvalidInput
from evomerge.whole_files import write_whole

__all__ = ["cut_torn_line", "refuse_broken_lines", "repair_tail"]

_BLOCK = 1 << 16


def repair_tail(path: Path) -> Path | None:
    """Cut a torn last line off a journal file; returns the file that the line is kept in, None where none was torn.

    Safe beside a running writer: it happens under the lock that Optuna's journal backend takes for each append.
    """
    path = path.absolute()  # Optuna's lock is a symbolic link to this path, which would dangle if it were relative
    if not path.exists():
        return None
    with path.open("rb") as file:
        if _ends_in_newline(file):
            return None
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        with path.open("rb+", buffering=0) as file:
            return cut_torn_line(file, path)
    finally:
        with suppress(RuntimeError):  # we were slow, and somebody has broken the lock
            lock.release()


def cut_torn_line(file: FileIO, path: Path) -> Path | None:
    """Cut a torn last line off an open journal file, of which the caller holds the lock: nobody will complete the line.

    Only the line is copied, not the journal: others break the lock after a while, and the disk may be almost full.

    Args:
        path: of the journal, beside which the line is kept.
    """
    if _ends_in_newline(file):
        return None
    start = _after_last_newline(file)
    backup = _unused(path)
    file.seek(start)
    write_whole(backup, iter(partial(file.read, _BLOCK), b""))
    file.truncate(start)
    os.fsync(file.fileno())
    return backup


def _ends_in_newline(file: BinaryIO | FileIO) -> bool:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return True
    file.seek(size - 1)
    return file.read(1) == b"\n"


def _after_last_newline(file: FileIO) -> int:
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _unused(path: Path) -> Path:
    number = 1
    while (backup := path.with_name(f"{path.name}.torn{number}")).exists():
        number += 1
    return backup


def refuse_broken_lines(path: Path) -> None:
    """Look for the line of a journal that cannot be read.

    Raises:
        InvalidInput: a complete line is not JSON. That is damage of another kind than a torn tail, and what follows the
            line may depend on it: nothing is changed.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return  # an append that has begun since
            try:
                json.loads(line)
            except ValueError as error:
                raise InvalidInput(
                    f"line {number} of the journal {path} is damaged ({error}); nothing was changed: "
                    f"restore the file from a backup, or remove the line if you know that it does not matter"
                ) from error
