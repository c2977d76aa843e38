"""Files that hold studies, recognised by their content: a storage may have any name, and its neighbours are not ours.

Nothing is written: Optuna creates its tables in every SQLite file that it opens, and we repair every journal.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from evomerge.errors import InvalidInput

__all__ = ["has_studies"]

_SQLITE: Final = b"SQLite format 3\0"  # begins the header, see section 1.3 of https://www.sqlite.org/fileformat.html
_READ_VERSION: Final = 19  # the byte of the header that is 2 where changes go to a log, FILE-wal
_HEADER: Final = _READ_VERSION + 1  # bytes of the header that are read
_LONGEST: Final = 1 << 16  # bytes of the first entry of a journal, which creates a study
_SECONDS: Final = 5.0  # that a database which is being written to is waited for
_QUERY: Final = "SELECT EXISTS (SELECT 1 FROM studies)"
_COLUMN: Final = "SELECT EXISTS (SELECT 1 FROM pragma_table_info('studies') WHERE name = 'study_name')"


def has_studies(file: Path) -> bool:
    """Whether a file is a SQLite database with studies of Optuna, or a journal of Optuna's.

    Raises:
        InvalidInput: it cannot be read, so that it may be one.
    """
    try:
        if not file.is_file():
            return False
        with file.open("rb") as opened:
            head = opened.read(_HEADER)
            if head.startswith(b"{"):
                opened.seek(0)
                return _is_entry(opened.readline(_LONGEST))
        return head.startswith(_SQLITE) and _database_has_studies(file, head)
    except (OSError, sqlite3.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidInput(f"{file} may be a storage with studies, but it cannot be read: {reason}") from error


def _is_entry(line: bytes) -> bool:
    """Whether a line is an entry of a journal. One without its end is a torn one: no study was created."""
    try:
        return line.endswith(b"\n") and "op_code" in json.loads(line)
    except (ValueError, RecursionError):
        return False


def _database_has_studies(file: Path, head: bytes) -> bool:
    has_log = file.with_name(f"{file.name}-wal").exists()
    # Where all changes are in the file, SQLite would create the log, and leave it there.
    options = "mode=ro&immutable=1" if head[_READ_VERSION:] == b"\2" and not has_log else "mode=ro"
    uri = f"{file.absolute().as_uri()}?{options}"
    with closing(sqlite3.connect(uri, uri=True, timeout=_SECONDS)) as connection:
        return all(connection.execute(query).fetchone()[0] for query in (_COLUMN, _QUERY))
