"""A journal that was cut in mid-line opens again; one that was damaged otherwise is refused."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from pathlib import Path

import optuna
import pytest

from evomerge.errors import InvalidInput
from evomerge.storage.journal_repair import repair_tail
from evomerge.storage.opening import open_storage


def new_study(path: Path, trials: int = 3) -> None:
    study = optuna.create_study(storage=open_storage(str(path)), study_name="s", load_if_exists=True)
    for _ in range(trials):
        study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), 1.0)


@pytest.mark.parametrize("cut", [1, 2, 17])
def test_a_torn_tail_is_moved_to_a_file_beside_the_journal(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "study.log"
    new_study(path)
    whole = path.read_bytes()
    torn = whole[:-cut]
    path.write_bytes(torn)
    backup = repair_tail(path)
    assert backup is not None
    assert path.read_bytes() == whole[: whole.rstrip(b"\n").rfind(b"\n") + 1]
    assert path.read_bytes() + backup.read_bytes() == torn
    new_study(path, trials=2)
    assert len(optuna.load_study(storage=open_storage(str(path)), study_name="s").trials) >= 4


def test_optuna_alone_loses_the_study(tmp_path: Path) -> None:
    """Why this module exists. When this fails, Optuna repairs journals itself, and the module can go."""
    path = tmp_path / "study.log"
    new_study(path)
    path.write_bytes(path.read_bytes()[:-5])
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    study = optuna.load_study(storage=optuna.storages.JournalStorage(backend), study_name="s")
    for _ in range(2):
        with contextlib.suppress(json.JSONDecodeError, AttributeError):  # it stumbles over its own write
            study.ask()
    with pytest.raises(json.JSONDecodeError):
        optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))


def test_n27_opening_repairs(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    new_study(path)
    with path.open("ab") as file:
        file.write(b'{"op_code":5,"worker')
    new_study(path)
    assert len(optuna.load_study(storage=open_storage(str(path)), study_name="s").trials) == 6
    assert (tmp_path / "study.log.torn1").exists()


def test_a_whole_an_empty_and_an_absent_journal_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    assert repair_tail(path) is None
    assert not path.exists()
    path.touch()
    assert repair_tail(path) is None
    new_study(path)
    before = path.read_bytes()
    assert repair_tail(path) is None
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["study.log"]


def test_a_journal_of_nothing_but_a_torn_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    path.write_bytes(b"x" * 200_000)
    backup = repair_tail(path)
    assert backup is not None
    assert (path.read_bytes(), backup.read_bytes()) == (b"", b"x" * 200_000)


def test_a_tail_that_cannot_be_copied_stays_and_leaves_no_part_of_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "study.log"
    path.write_bytes(b"{}\n{")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        repair_tail(path)
    assert path.read_bytes() == b"{}\n{"
    assert [file.name for file in tmp_path.iterdir()] == ["study.log"]


def test_backups_do_not_replace_each_other(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    for text in (b"{}\nfirst", b"{}\nsecond"):
        path.write_bytes(text)
        repair_tail(path)
    assert (tmp_path / "study.log.torn1").read_bytes() == b"first"
    assert (tmp_path / "study.log.torn2").read_bytes() == b"second"


def test_a_broken_line_in_the_middle_is_refused_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    new_study(path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3][:10] + b"\n"
    path.write_bytes(b"".join(lines))
    assert repair_tail(path) is None
    with pytest.raises(InvalidInput, match="line 4 of the journal"):
        open_storage(str(path))
    assert path.read_bytes() == b"".join(lines)


def test_the_repair_waits_for_the_lock_of_a_running_append(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    path.write_bytes(b'{"a": 1}\n{"b"')
    lock = optuna.storages.journal.JournalFileSymlinkLock(str(path))
    lock.acquire()
    child = os.fork()
    if child == 0:  # the running append: completes its line while it holds the lock
        time.sleep(0.5)
        with path.open("ab") as file:
            file.write(b": 2}\n")
        lock.release()
        os._exit(0)
    assert repair_tail(path) is None
    os.waitpid(child, 0)
    assert path.read_bytes() == b'{"a": 1}\n{"b": 2}\n'


def test_works_from_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/study.log").write_bytes(b"{}\n{")
    backup = repair_tail(Path("runs/study.log"))
    assert backup is not None
    assert backup.name == "study.log.torn1"
    assert Path("runs/study.log").read_bytes() == b"{}\n"
