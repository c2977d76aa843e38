"""Storage URLs: no password is shown, and the folder of a run lies beside its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.storage.url import redact, run_directory


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:pw@h:5/d", "postgresql://u:***@h:5/d"),
        ("mysql+pymysql://u:p%40w@h/d?charset=utf8", "mysql+pymysql://u:***@h/d?charset=utf8"),
        ("redis://:pw@h:6379/0", "redis://:***@h:6379/0"),
        ("postgresql://u@h/d?password=pw&sslmode=require", "postgresql://u@h/d?password=***&sslmode=require"),
        ("postgresql://u:p@w@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:p/w?x@h/d", "postgresql://u:***@h/d"),
        ("postgresql://h/d", "postgresql://h/d"),
        ("sqlite:///runs/a/study.db", "sqlite:///runs/a/study.db"),
        ("env:STUDY_URL", "env:STUDY_URL"),
        ("runs/study.log", "runs/study.log"),
    ],
)
def test_a_shown_url_has_no_password(url: str, shown: str) -> None:
    assert redact(url) == shown


def test_the_run_directory_is_beside_the_file() -> None:
    assert run_directory("sqlite:///runs/a/study.db", "a") == Path("runs/a")
    assert run_directory("sqlite:////data/study.db", "a") == Path("/data")
    assert run_directory("journal:////data/study.journal", "a") == Path("/data")
    assert run_directory("postgresql://h/d", "a") == Path("runs/a")
