"""Opening of storages: one table from URLs to Optuna storages, and writes of which all or nothing is stored."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.engine import make_url

from evomerge.clock import SYSTEM_CLOCK, Clock
from evomerge.errors import EvomergeError, InvalidInput, nearest
from evomerge.storage.journal_repair import refuse_broken_lines, repair_tail
from evomerge.storage.journal_storage import TransactionalJournalStorage
from evomerge.storage.journals import FileJournal, RedisJournal
from evomerge.storage.optuna_internals import backend_of
from evomerge.storage.patience import (
    IMPATIENT,
    StorageAway,
    StoragePatience,
    is_away,
    is_full,
    is_refused,
    reason_of,
)
from evomerge.storage.patient_storage import PatientReader, PatientWriter
from evomerge.storage.url import SQLITE, check_server_url, described_url, file_of, redact, resolve_url, scheme_of

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
    "file:PATH (the URL is in that file)",
)

# scheme -> that for SQLAlchemy, and the extra that installs its driver. A bare postgresql:// means psycopg 3 only from
# SQLAlchemy 2.1 on.
_SERVERS: Final = {
    "postgresql": ("postgresql+psycopg", "postgres"),
    "postgresql+psycopg": ("postgresql+psycopg", "postgres"),
    "mysql+pymysql": ("mysql+pymysql", "mysql"),
}
_REDIS: Final = ("redis", "rediss")

_RETRY_SECONDS: Final = 15.0

# As /proc/mounts names them. On these, SQLite's locks are unreliable: it reports "database is locked" or loses data.
_NETWORK_FILESYSTEMS: Final = frozenset({
    "nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "glusterfs", "ceph", "afs",
    "ncpfs", "pvfs2", "orangefs", "panfs", "wekafs", "fuse.beegfs", "fuse.glusterfs", "fuse.ceph", "fuse.ceph-fuse",
    "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.juicefs",
})  # fmt: skip

_CONNECT_SECONDS = 10  # after which a server that takes no connection counts as away
# Without limits a connection whose host has vanished, and which nobody resets, hangs for 15 minutes or two hours.
# PostgreSQL's are those of TCP, which a statement that takes long does not touch. PyMySQL knows only one for an answer:
# ours come sooner, and InnoDB waits 50 s for a row at most.
_CONNECTION_LIMITS: Final = {
    "postgresql+psycopg": {
        "connect_timeout": _CONNECT_SECONDS,
        "keepalives_idle": 20,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,  # milliseconds
    },
    "mysql+pymysql": {"connect_timeout": _CONNECT_SECONDS, "read_timeout": 60, "write_timeout": 60},
}
_SQLITE_TIMEOUT = 60  # seconds that a write waits for a reader's lock; the default of 5 kills studies
_SQLITE_SLICE = 4  # of that, where it is repeated with patience: SQLite itself notices no signal meanwhile


def open_storage(url: str, *, single_writer: bool = False, patience: StoragePatience = IMPATIENT) -> BaseStorage:
    """Open a storage, and create its file or tables if there are none.

    The folder of a file is created; a journal file whose last line was torn by a crash is repaired first. Relational
    storages come with Optuna's cache around them, so that everybody who is given the storage shares one cache:
    `create_study` would otherwise put another one around it at each call.

    Args:
        single_writer: this process holds the studies that it will read, so that it need not read anything twice.
        patience: with which the storage is waited for once it is open. At first it has to be there.

    Raises:
        InvalidInput: unknown scheme, malformed URL, missing driver, a server that refuses user or password, SQLite on a
            network file system, or a damaged journal. No message shows any part of where a server is.
        StorageAway: the server cannot be reached, the file is locked or the disk is full.
    """
    url = resolve_url(url)
    scheme = scheme_of(url)
    if scheme in SQLITE:
        wait = _SQLITE_SLICE if single_writer and patience.seconds > _SQLITE_TIMEOUT else _SQLITE_TIMEOUT
        return _cached(_open_sqlite(url, wait), url, file_of(url).absolute().parent, patience, single_writer)
    if scheme == "journal":
        return _open_journal(file_of(url), patience)
    if scheme in _SERVERS:
        return _cached(_open_server(url, *_SERVERS[scheme]), url, None, patience, single_writer)
    if scheme in _REDIS:
        return _open_redis(url, patience)
    raise _unknown_storage(url, scheme)


def check_kind(url: str) -> None:
    """Refuse the URL of a kind of storage that there is not. Nothing is opened.

    Raises:
        InvalidInput: unknown scheme.
    """
    if (scheme := scheme_of(url)) not in (*SQLITE, *_SERVERS, *_REDIS, "journal"):
        raise _unknown_storage(url, scheme)


def _unknown_storage(url: str, scheme: str) -> InvalidInput:
    close = nearest(scheme, [*SQLITE, *_SERVERS, *_REDIS, "journal"])
    hint = f"did you mean {close[0]}://? " if close and scheme else ""
    return InvalidInput(f"unknown storage {redact(url)!r}; {hint}allowed: {'; '.join(ALLOWED)}")


def with_retries(call: Callable[[], _Result], *, clock: Clock = SYSTEM_CLOCK) -> _Result:
    """Call again for a while when the storage is away. For calls that may be repeated, on storages without patience.

    Raises:
        StorageAway: it is still away.
    """
    return StoragePatience(seconds=_RETRY_SECONDS, clock=clock).retry(call, "the storage")


def in_transaction(
    storage: BaseStorage, write: Callable[[], _Result], stored: Callable[[], _Result | None] = lambda: None
) -> _Result:
    """Store everything that `write` writes, or nothing of it, in one transaction; again while the database is away.

    Optuna commits each parameter and attribute by itself, and each commit waits for the disk: some 45 times per trial
    with 30 parameters. A journal gets them at once.

    Args:
        stored: finds what a transaction has stored although nobody acknowledged it, for writes that may not be
            repeated; None where it was not stored.

    Raises:
        StorageAway: the database is still away after the seconds of patience.
    """
    if isinstance(storage, PatientWriter):
        return storage.store(write, stored)
    return storage.store(write) if isinstance(storage, TransactionalJournalStorage) else write()


def release(storage: BaseStorage) -> None:
    """Close the connections that a storage keeps open. It can still be used, and then opens new ones."""
    storage.remove_session()
    relational = backend_of(storage)
    if isinstance(relational, RDBStorage):
        relational.engine.dispose()


def _cached(
    backend: RDBStorage, url: str, folder: Path | None, patience: StoragePatience, single_writer: bool
) -> BaseStorage:
    awaited = described_url(url)
    if single_writer:
        return PatientWriter(backend, patience, awaited, folder)
    return PatientReader(backend, awaited, folder)


def _open_sqlite(url: str, timeout: float) -> RDBStorage:
    file = file_of(url)
    kind = network_filesystem(file)
    if kind:
        raise InvalidInput(
            f"{file} is on a network file system ({kind}), where SQLite's locks do not work; "
            f"use a local disk, a journal (journal:///{file.with_suffix('.journal')}) or a database server"
        )
    _make_folder(file)
    options = {"connect_args": {"timeout": timeout}}
    return _reached(lambda: _relational(_for_sqlalchemy(url), options), url, _is_busy)


def _is_busy(error: Exception) -> bool:
    """Whether a file that cannot be opened now can be opened later. A folder that may not be written to cannot."""
    return is_full(error) or "locked" in reason_of(error)


def _for_sqlalchemy(url: str) -> str:
    """The URL of a SQLite file, whose path is as it is, for SQLAlchemy: from 2.1 on that decodes a % in it."""
    if make_url("sqlite:///%25").database != "%":
        return url
    path, mark, options = url.partition("?")
    return f"{path.replace('%', '%25')}{mark}{options}"


def _open_server(url: str, driver: str, extra: str) -> RDBStorage:
    check_server_url(url)
    rest = url.partition("://")[2]

    def opened() -> RDBStorage:
        # A connection that the server has closed meanwhile is replaced instead of failing the next write.
        options = {"pool_pre_ping": True, "connect_args": _connection_limits(f"{driver}://{rest}", driver)}
        return _relational(f"{driver}://{rest}", options)

    try:
        return _reached(opened, url)
    except ImportError:
        raise _missing_driver(url, extra) from None


def _connection_limits(url: str, driver: str) -> dict[str, int]:
    """The arguments of a connection after which a server counts as away, but for those that the URL has itself."""
    chosen = make_url(url).query
    return {name: limit for name, limit in _CONNECTION_LIMITS[driver].items() if name not in chosen}


def _open_journal(file: Path, patience: StoragePatience) -> BaseStorage:
    file = file.resolve()
    _make_folder(file)

    def opened() -> BaseStorage:
        with suppress(OSError):  # the next entry cuts a torn line off as well, and waits for a disk in trouble
            repair_tail(file)
        journal = FileJournal(file)
        try:
            storage = TransactionalJournalStorage(journal)
        except ValueError:  # of JSON; it is told which line
            refuse_broken_lines(file)
            raise
        journal.patience = patience
        return storage

    return _reached(opened, f"journal:///{file}", is_full)


def _open_redis(url: str, patience: StoragePatience) -> BaseStorage:
    check_server_url(url)

    def opened() -> BaseStorage:
        journal = RedisJournal(url)
        journal.check()
        storage = TransactionalJournalStorage(journal)
        journal.patience = patience
        return storage

    try:
        return _reached(opened, url)
    except ImportError:
        raise _missing_driver(url, "redis") from None


def _reached(
    opened: Callable[[], _Result], url: str, later: Callable[[Exception], bool] = lambda error: not is_refused(error)
) -> _Result:
    """Open a storage that has to be there.

    Args:
        later: whether a storage that is away may be there later, or something has to be changed.
    """
    try:
        return opened()
    except (EvomergeError, ImportError):
        raise
    except Exception as error:  # a driver may raise anything about a URL that it cannot read, with parts of it
        if is_away(error) and later(error):
            raise StorageAway(
                f"{described_url(url)} cannot be opened at present: {reason_of(error)}; "
                "nothing was changed, run the same command again when it can"
            ) from None
        raise InvalidInput(f"cannot open {redact(url)}: {reason_of(error)}") from None


def _relational(url: str, engine_options: dict[str, Any]) -> RDBStorage:
    # RDBStorage formats the URL as a template of its own; doubled braces come out as they were.
    return RDBStorage(url.replace("{", "{{").replace("}", "}}"), engine_kwargs=engine_options)


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
