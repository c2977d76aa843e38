"""Opening of storages: one table from URLs to Optuna storages, and writes that survive a storage that is away."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import unquote

from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from evomerge.errors import Interrupted, InvalidInput, nearest
from evomerge.messages import first_line
from evomerge.storage.journal_repair import repair_tail
from evomerge.storage.journals import FileJournal, RedisJournal
from evomerge.storage.optuna_internals import CachedStorage, backend_of
from evomerge.storage.single_writer import SingleWriterStorage
from evomerge.storage.url import SQLITE, file_of, redact, resolve_url, scheme_of

__all__ = ["in_transaction", "network_filesystem", "open_storage", "release", "with_retries"]


_Result = TypeVar("_Result")

ALLOWED: Final = (
    "sqlite:///FILE",
    "journal:///FILE",
    "FILE.log or FILE.journal (a journal)",
    "postgresql+psycopg://USER:PASSWORD@HOST/DATABASE",
    "mysql+pymysql://USER:PASSWORD@HOST/DATABASE",
    "redis://:PASSWORD@HOST:PORT/NUMBER",
    "env:NAME (the URL is in that environment variable)",
)

# scheme -> that for SQLAlchemy, and the extra that installs its driver. A bare postgresql:// means psycopg 3 only from
# SQLAlchemy 2.1 on.
_SERVERS: Final = {
    "postgresql": ("postgresql+psycopg", "postgres"),
    "postgresql+psycopg": ("postgresql+psycopg", "postgres"),
    "mysql+pymysql": ("mysql+pymysql", "mysql"),
}
_REDIS: Final = ("redis", "rediss")

# As /proc/mounts names them. On these, SQLite's locks are unreliable: it reports "database is locked" or loses data.
_NETWORK_FILESYSTEMS: Final = frozenset({
    "nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "glusterfs", "ceph", "afs",
    "ncpfs", "pvfs2", "orangefs", "panfs", "wekafs", "fuse.beegfs", "fuse.glusterfs", "fuse.ceph", "fuse.ceph-fuse",
    "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.juicefs",
})  # fmt: skip

_SQLITE_TIMEOUT = 60  # seconds that a write waits for a reader's lock; the default of 5 kills studies


def open_storage(url: str, *, single_writer: bool = False) -> BaseStorage:
    """Open a storage, and create its file or tables if there are none.

    The folder of a file is created; a journal file whose last line was torn by a crash is repaired first. Relational
    storages come with Optuna's cache around them, so that everybody who is given the storage shares one cache:
    `create_study` would otherwise put another one around it at each call.

    Args:
        single_writer: this process holds the studies that it will read, so that it need not read anything twice.

    Raises:
        InvalidInput: unknown scheme, missing driver, unreachable server, SQLite on a network file system, or a damaged
            journal. No message shows a password.
    """
    url = resolve_url(url)
    scheme, cache = scheme_of(url), SingleWriterStorage if single_writer else CachedStorage
    if scheme in SQLITE:
        return cache(_open_sqlite(url))
    if scheme == "journal":
        return _open_journal(file_of(url))
    if scheme in _SERVERS:
        return cache(_open_server(url, *_SERVERS[scheme]))
    if scheme in _REDIS:
        return _open_redis(url)
    close = nearest(scheme, [*SQLITE, *_SERVERS, *_REDIS, "journal"])
    hint = f"did you mean {close[0]}://? " if close and scheme else ""
    raise InvalidInput(f"unknown storage {redact(url)!r}; {hint}allowed: {'; '.join(ALLOWED)}")


def with_retries(write: Callable[[], _Result], *, attempts: int = 6, first_wait: float = 0.5) -> _Result:
    """Call `write` again while the storage reports an internal error, with waits that double: 15 s in all by default.

    For writes that may be repeated: setting attributes and parameters, opening a study. A write that was stored
    although it reported an error is done twice; after a repeated `tell`, look at the trial's state.

    Raises:
        Interrupted: the storage still does not answer. What was finished before is stored.
    """
    for attempt in range(attempts - 1):
        try:
            return write()
        except StorageInternalError:
            time.sleep(first_wait * 2**attempt)
    try:
        return write()
    except StorageInternalError as error:
        raise Interrupted("the storage does not answer; run the same command again to go on") from error


def in_transaction(storage: BaseStorage, write: Callable[[], _Result]) -> _Result:
    """Store everything that `write` writes, or nothing of it, in one transaction; repeated like `with_retries`.

    Optuna commits each parameter and attribute by itself, and each commit waits for the disk: some 45 times per trial
    with 30 parameters. Journals have no transactions; there each write is stored as it comes.

    Raises:
        Interrupted: the storage still does not answer.
    """

    def once() -> _Result:
        with storage.transaction() if isinstance(storage, SingleWriterStorage) else nullcontext():
            return write()

    return with_retries(once)


def release(storage: BaseStorage) -> None:
    """Close the connections that a storage keeps open. It can still be used, and then opens new ones."""
    storage.remove_session()
    relational = backend_of(storage)
    if isinstance(relational, RDBStorage):
        relational.engine.dispose()


def _open_sqlite(url: str) -> RDBStorage:
    file = file_of(url)
    kind = network_filesystem(file)
    if kind:
        raise InvalidInput(
            f"{file} is on a network file system ({kind}), where SQLite's locks do not work; "
            f"use a local disk, a journal (journal:///{file.with_suffix('.journal')}) or a database server"
        )
    _make_folder(file)
    return _relational(url, _for_sqlalchemy(url), {"connect_args": {"timeout": _SQLITE_TIMEOUT}})


def _for_sqlalchemy(url: str) -> str:
    """The URL of a SQLite file, whose path is as it is, for SQLAlchemy: from 2.1 on that decodes a % in it."""
    if make_url("sqlite:///%25").database != "%":
        return url
    path, mark, options = url.partition("?")
    return f"{path.replace('%', '%25')}{mark}{options}"


def _open_server(url: str, driver: str, extra: str) -> RDBStorage:
    rest = url.partition("://")[2]
    try:
        # A connection that the server has closed meanwhile is replaced instead of failing the next write.
        return _relational(url, f"{driver}://{rest}", {"pool_pre_ping": True})
    except ImportError as error:
        raise _missing_driver(url, extra) from error


def _open_journal(file: Path) -> BaseStorage:
    file = file.resolve()
    _make_folder(file)
    repair_tail(file)
    # Absolute, because Optuna's lock is a symbolic link with this path as its target: one that dangles is never
    # recognised as stale, and a crash while it is held would block the journal for ever.
    return JournalStorage(FileJournal(str(file)))


def _open_redis(url: str) -> BaseStorage:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            backend = RedisJournal(url)
    except ImportError as error:
        raise _missing_driver(url, "redis") from error
    except ValueError as error:  # redis-py, about the URL
        raise InvalidInput(f"cannot open {redact(url)}: not a redis URL") from error
    try:
        return JournalStorage(backend)
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "redis":  # its errors have no base class outside the package
            raise
        raise InvalidInput(f"cannot open {redact(url)}: {type(error).__name__}; is the server running?") from error


def _relational(given: str, url: str, engine_options: dict[str, Any]) -> RDBStorage:
    # RDBStorage formats the URL as a template of its own; doubled braces come out as they were.
    template = url.replace("{", "{{").replace("}", "}}")
    try:
        return RDBStorage(template, engine_kwargs=engine_options)
    except ArgumentError as error:
        raise InvalidInput(
            f"cannot read the storage URL {redact(given)!r}; special characters in a password must be percent-encoded"
        ) from error
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = _without_secrets(first_line(error), given)
        raise InvalidInput(f"cannot open {redact(given)}: {reason}") from error


def _without_secrets(text: str, url: str) -> str:
    password = url.partition("://")[2].rpartition("@")[0].partition(":")[2]
    for secret in {password, unquote(password)} - {""}:
        text = text.replace(secret, "***")
    return text


def _missing_driver(url: str, extra: str) -> InvalidInput:
    return InvalidInput(f"{redact(url)} needs a driver that is not installed: pip install 'evomerge[{extra}]'")


def _make_folder(file: Path) -> None:
    try:
        file.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"cannot create the folder of {file}: {error.strerror}") from error


def network_filesystem(file: Path) -> str:
    """The type of the network file system that a file is or would be on, "" for a local one."""
    kind = _filesystem(file)
    return kind if kind in _NETWORK_FILESYSTEMS else ""


def _filesystem(file: Path, mounts: str | None = None) -> str:
    """The type of the file system that a file is or would be on, "" where the system does not tell."""
    if mounts is None:
        try:
            mounts = Path("/proc/mounts").read_text()
        except OSError:  # not Linux
            return ""
    path = file.resolve()
    found = (Path("/"), "")
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split(" ")
        folder = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), point))
        # Of two mounts on the same folder the later one is seen.
        if path.is_relative_to(folder) and len(folder.parts) >= len(found[0].parts):
            found = (folder, kind)
    return found[1]
