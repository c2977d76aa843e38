"""Storages are recognised by their content, and no file is changed by that."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from evomerge.errors import InvalidInput
from evomerge.storage.opening import open_storage, release
from evomerge.storage.study_files import has_studies


def with_study(url: str) -> None:
    storage = open_storage(url)
    optuna.create_study(storage=storage, study_name="s")
    release(storage)


def database(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "url", ["sqlite:///{}/study", "sqlite:///{}/a?b.db", "journal:///{}/study.log", "{}/b.journal"]
)
def test_a_storage_is_recognised_whatever_its_name(tmp_path: Path, url: str) -> None:
    with_study(url.format(tmp_path))
    before = contents(tmp_path)
    assert [has_studies(file) for file in tmp_path.iterdir()] == [True]
    assert contents(tmp_path) == before


def test_journals_of_optunas_own_are_recognised(tmp_path: Path) -> None:
    file = tmp_path / "trials"
    backend = optuna.storages.journal.JournalFileBackend(str(file))
    optuna.create_study(storage=optuna.storages.JournalStorage(backend))
    assert has_studies(file)


def test_files_of_other_programs_have_no_studies_and_keep_every_byte(tmp_path: Path) -> None:
    database(tmp_path / "photos.db", "CREATE TABLE experiments (id INTEGER)")
    version = "CREATE TABLE alembic_version (version_num VARCHAR(32))"
    database(tmp_path / "mlflow.db", version, "INSERT INTO alembic_version VALUES ('1b5f0d9ad7c1')")
    database(tmp_path / "clinic.db", "CREATE TABLE studies (patient TEXT)", "INSERT INTO studies VALUES ('x')")
    database(tmp_path / "log.db", "PRAGMA journal_mode=WAL", "CREATE TABLE photos (id INTEGER)")
    texts = (b"", b"Monday: all went well\nunfinished", b'{"a": 1}\n{"op_code":0}\n', b'{"op_code":0', b"{" * 9999)
    for number, text in enumerate((*texts, b'{"op_code":0}', b'{"a":' * 9999 + b"\n", b"[" * 9999 + b"\n")):
        (tmp_path / f"{number}.journal").write_bytes(text)
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "dangling.db").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.log")
    before = contents(tmp_path)
    assert not any(has_studies(file) for file in tmp_path.iterdir())
    assert contents(tmp_path) == before


def test_a_storage_without_studies_has_none(tmp_path: Path) -> None:
    release(open_storage(f"sqlite:///{tmp_path}/empty.db"))
    assert not has_studies(tmp_path / "empty.db")


def test_a_study_that_is_only_in_the_log_of_a_database_is_found(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    release(open_storage(f"sqlite:///{file}"))
    database(file, "PRAGMA journal_mode=WAL")
    with closing(sqlite3.connect(file)) as writer:
        writer.execute("INSERT INTO studies (study_name) VALUES ('s')")
        writer.commit()
        assert has_studies(file)


def test_a_database_that_is_damaged_may_have_studies(tmp_path: Path) -> None:
    with_study(f"sqlite:///{tmp_path}/study.db")
    file = tmp_path / "study.db"
    file.write_bytes(file.read_bytes()[:100] + b"x" * 10_000)
    with pytest.raises(InvalidInput, match=r"study.db may be a storage with studies, but it cannot be read"):
        has_studies(file)
