"""Storages that are opened by URL: their passwords, and what is refused."""

from __future__ import annotations

import errno
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import RDBStorage
from optuna.storages.journal._base import BaseJournalSnapshot
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError, ProgrammingError

from evomerge.errors import InvalidInput
from evomerge.spec import load_spec, read_spec
from evomerge.storage import journal_repair, opening
from evomerge.storage.journals import FileJournal, RedisJournal
from evomerge.storage.opening import open_storage
from evomerge.storage.patience import StorageAway, StoragePatience
from evomerge.storage.url import local_file, redact, resolve_url


def use(url: str) -> int:
    study = optuna.create_study(storage=open_storage(url), study_name="s", load_if_exists=True)
    study.tell(study.ask(), 1.0)
    return len(optuna.load_study(storage=open_storage(url), study_name="s").trials)


@pytest.mark.parametrize("url", ["sqlite:///{}/new/folder/study.db", "journal:///{}/new/study", "{}/new/study.log"])
def test_files_are_created_with_their_folder_and_opened_again(url: str, tmp_path: Path) -> None:
    url = url.format(tmp_path)
    assert use(url) == 1
    assert use(url) == 2
    assert local_file(url) == next(path for path in tmp_path.rglob("study*") if path.is_file())


def test_relative_files_are_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("sqlite:///runs/a/study.db", "journal:///runs/a/study.journal", "runs/a/other.journal"):
        assert use(url) == 1
    assert sorted(path.name for path in Path("runs/a").iterdir()) == ["other.journal", "study.db", "study.journal"]


@pytest.mark.parametrize("name", ["with space.db", "100%.db", "{braces}.db", "{SCHEMA_VERSION}.db", "ünï.db"])
def test_odd_file_names_are_taken_literally(name: str, tmp_path: Path) -> None:
    assert use(f"sqlite:///{tmp_path}/{name}") == 1
    assert (tmp_path / name).exists()


def test_everybody_shares_one_cache(tmp_path: Path) -> None:
    opened = open_storage(f"sqlite:///{tmp_path}/study.db")
    first = optuna.create_study(storage=opened, study_name="first")
    second = optuna.create_study(storage=opened, study_name="second")
    assert first._storage is second._storage is opened


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EACCES])
def test_a_journal_opens_though_its_torn_line_cannot_be_cut_off_yet(number: int, tmp_path: Path) -> None:
    file = tmp_path / "study.journal"
    assert use(f"journal:///{file}") == 1
    file.write_bytes(file.read_bytes() + b'{"op_code":4,')

    def failing(path: Path, content: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(journal_repair, "write_whole", failing)
        storage = open_storage(f"journal:///{file}")
        assert len(optuna.load_study(storage=storage, study_name="s").trials) == 1
    assert use(f"journal:///{file}") == 2
    assert [path.name for path in tmp_path.glob("*.torn1")] == ["study.journal.torn1"]


def test_an_unknown_scheme_is_answered_with_what_is_allowed() -> None:
    with pytest.raises(InvalidInput, match=r"did you mean postgresql://\?.*sqlite:///FILE.*redis://"):
        open_storage("postgres://user:pw@host/db")
    with pytest.raises(InvalidInput, match=r"unknown storage 'study\.txt'"):
        open_storage("study.txt")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite://study.db", "sqlite:///:memory:", "sqlite:///", "journal:///"])
def test_a_study_in_memory_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="names no file"):
        open_storage(url)


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("postgresql://u:secret@h/d", "psycopg", "postgres"),
        ("postgresql+psycopg://u:secret@h/d", "psycopg", "postgres"),
        ("mysql+pymysql://u:secret@h/d", "pymysql", "mysql"),
    ],
)
def test_a_missing_driver_is_named_with_its_extra(
    url: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # importing it raises ImportError
    with pytest.raises(InvalidInput, match=rf"evomerge\[{extra}\]") as error:
        open_storage(url)
    assert "secret" not in str(error.value)


def test_a_missing_redis_client_is_named_with_its_extra() -> None:
    script = """
import sys
sys.modules["redis"] = None
from evomerge.errors import InvalidInput
from evomerge.storage.opening import open_storage
try:
    open_storage("redis://:secret@localhost:1/0")
except InvalidInput as error:
    print(error)
"""
    said = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], check=True, capture_output=True, text=True
    ).stdout
    assert "evomerge[redis]" in said
    assert "secret" not in said


def test_the_redis_journal_neither_reads_nor_writes_pickles() -> None:
    """Optuna's storage loads and saves snapshots, which are pickles, of backends of one kind."""
    assert not issubclass(RedisJournal, BaseJournalSnapshot)
    assert not issubclass(FileJournal, BaseJournalSnapshot)


@given(password=st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)), min_size=1, max_size=20))
def test_any_password_arrives_when_it_is_percent_encoded(password: str) -> None:
    seen = _given_to_optuna(f"postgresql://user:{quote(password, safe='')}@host/name")
    assert make_url(seen).password == password


@given(
    password=st.text("{}%ab!$", min_size=1, max_size=12).filter(lambda text: "%ab" not in text and "%ba" not in text)
)
def test_braces_and_percent_signs_may_stand_in_a_password_as_they_are(password: str) -> None:
    if "%aa" in password or "%bb" in password:
        return  # an escape, by the rules of URLs
    seen = _given_to_optuna(f"postgresql://user:{password}@host/name")
    assert make_url(seen).password == password
    assert f":{password}@" not in redact(f"postgresql://user:{password}@host/name")


def _given_to_optuna(url: str) -> str:
    """The URL that Optuna makes of what we give to it, without connecting."""
    made: list[str] = []

    class Recorder(RDBStorage):
        def __init__(self, url: str, engine_kwargs: object = None) -> None:
            made.append(self._fill_storage_url_template(url))
            raise ImportError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "RDBStorage", Recorder)
        with pytest.raises(InvalidInput):
            open_storage(url)
    return made[0]


@pytest.mark.parametrize(
    ("url", "module"),
    [
        ("postgresql://user:geheim@127.0.0.1:{port}/name", "psycopg"),
        ("mysql+pymysql://user:geheim@127.0.0.1:{port}/name", "pymysql"),
        ("redis://:geheim@127.0.0.1:{port}/0", "redis"),
    ],
)
def test_a_server_that_cannot_be_reached_is_resumable_and_reported_without_where_it_is(url: str, module: str) -> None:
    pytest.importorskip(module, reason=f"needs the driver {module}")
    with socket.socket() as taken:  # a port on which nobody listens, and nobody else will
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(StorageAway, match=r"cannot be opened at present: (nothing listens|it cannot be)") as error:
            open_storage(url.format(port=port), patience=StoragePatience(seconds=600))
    assert error.value.exit_code == 3
    for hidden in ("geheim", "user", "127.0.0.1", str(port)):
        assert hidden not in str(error.value)


REFUSALS = {
    "a password": OperationalError(
        "connect", {}, Exception('FATAL:  password authentication failed for user "geheim"')
    ),
    "a database": OperationalError("connect", {}, Exception(1049, "Unknown database 'geheim'")),
    "an option": ProgrammingError("connect", {}, Exception('invalid connection option "geheim"')),
    "a port": ValueError("invalid literal for int() with base 10: 'geheim@host'"),
    "a keyword": TypeError("Connection.__init__() got an unexpected keyword argument 'geheim'"),
    "a schema": RuntimeError("the table schema of geheim"),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_what_a_server_or_driver_refuses_is_invalid_input_in_our_own_words(
    refusal: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(url: str, engine_kwargs: object = None) -> None:
        raise refusal

    monkeypatch.setattr(opening, "RDBStorage", refuse)
    with pytest.raises(InvalidInput, match="cannot open postgresql://\\*\\*\\*/name: ") as error:
        open_storage("postgresql://user:secret@host/name")
    assert "geheim" not in str(error.value)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__


MOUNTS = """\
/dev/vda / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/vdb /home/local\\040disk xfs rw 0 0
//win/share /mnt/share cifs rw 0 0
"""


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("/data/study.db", "ext4"),
        ("/home/me/study.db", "nfs4"),
        ("/homely/study.db", "ext4"),
        ("/home/local disk/study.db", "xfs"),
        ("/mnt/share/study.db", "cifs"),
    ],
)
def test_the_file_system_is_that_of_the_innermost_mount(file: str, kind: str) -> None:
    assert opening._filesystem(Path(file), MOUNTS) == kind


def test_sqlite_on_a_network_file_system_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(opening, "_filesystem", lambda file: "nfs4")
    with pytest.raises(InvalidInput, match=r"network file system \(nfs4\).*journal:///"):
        open_storage(f"sqlite:///{tmp_path}/study.db")
    assert use(f"journal:///{tmp_path}/study.journal") == 1


@pytest.mark.parametrize(
    ("driver", "url", "limits"),
    [
        (
            "psycopg",
            "postgresql+psycopg://me@there/db?keepalives_idle=5",
            {"connect_timeout": 10, "keepalives_idle": "5", "keepalives_interval": 10, "keepalives_count": 3,
             "tcp_user_timeout": 30_000},
        ),
        (
            "pymysql",
            "mysql+pymysql://me@there/db?read_timeout=300&connect_timeout=20",
            {"connect_timeout": 20, "read_timeout": 300, "write_timeout": 60},
        ),
    ],
)  # fmt: skip
def test_a_connection_to_a_host_that_vanishes_is_given_up_within_a_minute_or_as_the_url_says(
    driver: str, url: str, limits: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = pytest.importorskip(driver)
    given: dict[str, object] = {}

    def connect(*_: object, **arguments: object) -> None:
        given.update(arguments)
        raise library.OperationalError("connection refused")

    monkeypatch.setattr(library, "connect", connect)
    with pytest.raises(StorageAway):
        open_storage(url)
    assert {name: value for name, value in given.items() if name in limits} == limits


def test_a_write_waits_for_a_foreign_lock_that_lasts_longer_than_sqlites_own_patience(tmp_path: Path) -> None:
    study = optuna.create_study(storage=open_storage(f"sqlite:///{tmp_path}/study.db"))
    trial = study.ask()
    foreign = sqlite3.connect(tmp_path / "study.db", check_same_thread=False, isolation_level=None)
    foreign.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(6.0, foreign.rollback)
    release.start()
    start = time.monotonic()
    study.tell(trial, 1.0)
    release.join()
    foreign.close()
    assert time.monotonic() - start > 5.0
    assert study.best_value == 1.0


def test_the_environment_can_hold_the_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STUDY_URL", f"sqlite:///{tmp_path}/study.db")
    assert use("env:STUDY_URL") == 1
    assert resolve_url("env:STUDY_URL") == f"sqlite:///{tmp_path}/study.db"
    monkeypatch.delenv("STUDY_URL")
    with pytest.raises(InvalidInput, match="'STUDY_URL' is not set"):
        open_storage("env:STUDY_URL")


def test_a_file_can_hold_the_url(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"sqlite:///{tmp_path}/study.db\n")
    assert use(f"file:{secret}") == 1
    assert local_file(f"file:{secret}") == tmp_path / "study.db"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        *((content, "has to hold one line, the URL, and nothing else") for content in ("", "\n", "two\nlines\n")),
        ("x" * 20_000, "has to hold one line, the URL, and nothing else"),
        ("env:OTHER", "holds another reference"),
    ],
)
def test_a_file_that_holds_no_url_is_refused_without_its_content(content: str, says: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(content)
    with pytest.raises(InvalidInput, match=says) as error:
        open_storage(f"file:{secret}")
    assert len(str(error.value)) < 300
    with pytest.raises(InvalidInput, match="cannot be read: No such file"):
        open_storage(f"file:{tmp_path}/other")


def test_the_spec_names_the_file_relative_to_itself(write_spec: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    path = write_spec("deploy/search.yaml", storage="file:secrets/url")
    assert load_spec(path).storage == f"file:{tmp_path}/deploy/secrets/url"
    assert read_spec(path).storage == f"file:{tmp_path}/deploy/secrets/url"
