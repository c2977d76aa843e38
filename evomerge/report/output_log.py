"""Log of the output of libraries, their threads and their processes while a command runs."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

ERROR_FILE = "evomerge-error.log"
MAX_BYTES = 20_000_000  # of the log of a run


class OutputLog:
    """A file that replaces this process's standard output and standard error.

    It takes over the file descriptors, which compiled code and processes that are started write to as well. Until it is
    given a name it is a temporary file, and gone with the process. Only a command line may do that to its process.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self._file: BinaryIO | None = None

    @property
    def is_open(self) -> bool:
        return self._file is not None

    def open(self) -> None:
        """Take over the standard streams."""
        self._take(tempfile.TemporaryFile())  # noqa: SIM115
        # Python's own: others print what they like, so that no character may fail, and lines come in order.
        sys.stdout, sys.stderr = (
            open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            for descriptor in (1, 2)
        )

    def move(self, path: Path) -> None:
        """Continue in a file, after its content, with the log so far; do nothing if the file cannot be written."""
        if self._file is None or self.path is not None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("ab")
        except OSError:
            return
        file.write(f"--- evomerge {version('evomerge')}, {time.strftime('%Y-%m-%d %H:%M:%S %z')}\n".encode())
        self._copy_to(file)
        self._take(file)
        self.path = path
        self.bound()

    def bound(self) -> None:
        """Move what has become too long to NAME.1 beside the file, in the place of what was there.

        Other processes have the file open, too: it is copied and made empty. What they print between is lost.
        """
        if self._file is None or self.path is None:
            return
        with suppress(OSError):
            if os.fstat(self._file.fileno()).st_size > MAX_BYTES:
                shutil.copyfile(self.path, self.path.with_name(f"{self.path.name}.1"))
                os.ftruncate(self._file.fileno(), 0)

    def keep(self, text: str) -> Path:
        """Add a text; return its file: the log's, else one in the working directory or a temporary one."""
        if self.path is not None:
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            return self.path
        for folder in (Path.cwd(), Path(tempfile.mkdtemp(prefix="evomerge-"))):
            path = folder / ERROR_FILE
            with suppress(OSError), path.open("wb") as kept:
                self._copy_to(kept)
                kept.write(text.encode("utf-8", "backslashreplace"))
                return path
        return Path(os.devnull)

    def _copy_to(self, file: BinaryIO) -> None:
        if self._file is not None:
            _flush()
            self._file.seek(0)
            shutil.copyfileobj(self._file, file)
            file.flush()

    def _take(self, file: BinaryIO) -> None:
        _flush()
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        self._file = file


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError, ValueError):
                stream.flush()
