"""Storage URLs: no password is shown, and the folder of a run lies beside its file."""

from __future__ import annotations

import traceback
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import EvomergeError
from evomerge.spec import OtherStudy, SearchSpec, WarmStartSpec
from evomerge.storage import opening
from evomerge.storage.opening import open_storage
from evomerge.storage.url import redact, run_directory, sibling_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:pw@h:5/d", "postgresql://***/d"),
        ("mysql+pymysql://u:p%40w@h/d?charset=utf8", "mysql+pymysql://***/d"),
        ("redis://:pw@h:6379/0", "redis://***/0"),
        ("postgresql://u@h/d?password=pw&sslmode=require", "postgresql://***/d"),
        ("postgresql://u:p@w@h/d", "postgresql://***"),
        ("postgresql://u:p/w?x@h/d", "postgresql://***"),
        ("postgresql://u:pw@h/d/pw", "postgresql://***"),
        ("postgresql://h/d", "postgresql://***/d"),
        ("postgresql:/u:pw@h/d", "***"),
        ("u:pw@h/d", "***"),
        ("u:pw://h/d", "***"),
        ("sqlite://u:pw@h/d", "sqlite://***/d"),
        ("sqlite:///runs/a/study.db", "sqlite:///runs/a/study.db"),
        ("env:STUDY_URL", "env:STUDY_URL"),
        ("env:postgresql://u:pw@h/d", "env:***"),
        ("file:/run/secrets/url", "file:/run/secrets/url"),
        ("file:postgresql://u:pw@h/d", "***"),
        ("runs/study.log", "runs/study.log"),
    ],
)
def test_a_shown_url_says_nothing_of_where_a_server_is(url: str, shown: str) -> None:
    assert redact(url) == shown


PIECE = "Geheim7"  # what every password here is made of, between characters that mean something in a URL
PASSWORDS = st.lists(st.sampled_from([*"@%{}:/#?& +=!$,;|\\'\"[]", "%40", "%2F", "://", PIECE]), max_size=8).map(
    lambda parts: PIECE + "".join(parts) + PIECE
)
FORMS = (
    "postgresql://user:{}@host/name",
    "postgresql+psycopg://user:{}@host:5432/name",
    "mysql+pymysql://user:{}@host/name?charset=utf8mb4",
    "redis://:{}@host:6379/0",
    "postgres://user:{}@host/name",
    "postgresql://user:{}",
    "postgresql://user@host/name?password={}",
    "postgresql://host/name?options={}",
    "postgresql:/user:{}@host/name",
    "postgresql:user:{}@host/name",
    "//user:{}@host/name",
    "user:{}@host/name",
    "sqlite://user:{}@host/name",
    "journal://user:{}@host/name",
    "env:user:{}@host",
    "file:postgresql://user:{}@host/name",
)


@given(form=st.sampled_from(FORMS), password=PASSWORDS, encoded=st.booleans())
@settings(max_examples=400, deadline=None)
def test_no_error_shows_any_part_of_a_password(form: str, password: str, encoded: bool) -> None:
    url = form.format(quote(password, safe="") if encoded else password)
    assert PIECE not in redact(url)

    class Failing:
        """The part of a driver that quotes what it was given."""

        def __init__(self, url: str, engine_kwargs: object = None) -> None:
            raise ValueError(f"invalid literal for int() with base 10: {url}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "RDBStorage", Failing)
        patch.setattr(opening, "RedisJournal", Failing)
        with pytest.raises(EvomergeError) as raised:
            open_storage(url)
    assert PIECE not in "".join(traceback.format_exception(raised.value))


@given(password=PASSWORDS)
def test_a_spec_that_is_printed_shows_no_storage(password: str) -> None:
    other = OtherStudy(name="other", storage=f"postgresql://user:{password}@host/name")
    assert PIECE not in repr(other)
    spec = SearchSpec.model_construct(name="a", storage=other.storage, warm_start=WarmStartSpec(studies=(other,)))
    assert PIECE not in repr(spec)
    assert PIECE not in str(spec)


def test_the_run_directory_is_beside_the_file() -> None:
    assert run_directory("sqlite:///runs/a/study.db", "a") == Path("runs/a")
    assert run_directory("sqlite:////data/study.db", "a") == Path("/data")
    assert run_directory("journal:////data/study.journal", "a") == Path("/data")
    assert run_directory("postgresql://h/d", "a") == Path("runs/a")


def test_the_file_of_another_search_is_beside_a_folder_that_is_named_after_this_one() -> None:
    assert sibling_url("sqlite:///runs/a/study.db", "a", "b") == "sqlite:///runs/b/study.db"
    assert sibling_url("sqlite:////data/a/study.db?timeout=9", "a", "b") == "sqlite:////data/b/study.db"
    assert sibling_url("/data/a/study.journal", "a", "b") == "journal:////data/b/study.journal"
    assert sibling_url("sqlite:////data/study.db", "a", "b") is None
    assert sibling_url("postgresql://h/a", "a", "b") is None
