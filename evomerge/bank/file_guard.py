"""A guard over the files that sources are mapped from: a file that changes under a search would change its candidates.

The content of the weights when the search was created is in the fingerprints, which the controller compares before a
run. From then on it is enough that they stay the same files: one look at each file's stamp per candidate, no byte read.
Tokenizer, generation settings and code are guarded as well: a worker that starts later would read others.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from evomerge.checkpoints import Source
from evomerge.errors import InvalidInput

_PATTERNS = (
    "*.safetensors",
    "*.bin",
    "*.safetensors.index.json",
    "config.json",
    "adapter_config.json",
    "generation_config.json",
)
_CODE = "*.py"  # of a model that is allowed to run it

FileStamp = tuple[int, int, int, int]


class FileGuard:
    """The files of some sources, as they were when this object was built."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self._seen = {path: _stamp(path) for source in sources for path in _files(source)}

    def check(self) -> None:
        """Compare every file with its stamp.

        Raises:
            InvalidInput: a file is gone, was replaced, or was written to, or cannot be looked at.
        """
        for path, seen in self._seen.items():
            if _stamp(path) != seen:
                raise InvalidInput(
                    f"{path} has changed since this worker opened it, so the candidates would no longer be comparable; "
                    "restore the file and start again, or make a new study for the new weights"
                )


def _files(source: Source) -> list[Path]:
    patterns = [*_PATTERNS, *[_CODE] * ("remote_code" in source.allow)]
    found = {path for pattern in patterns for path in source.directory.glob(pattern)}
    return sorted(found.union(source.directory / name for name in source.tokenizer_files))


def _stamp(path: Path) -> FileStamp | None:
    """Device, inode, size and time of the file itself (in a hub snapshot every name is a link); None without a file."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InvalidInput(f"cannot look at {path}: {error.strerror or error}") from error
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
