"""Rows that drills write, and the table that is made of them."""

import re
from pathlib import Path

import pytest
from drill_rows import Row, read_rows, storage_of, table

DRILLS = re.compile(r"^pytestmark = pytest.mark.drill$", re.MULTILINE)
FAULT = re.compile(r"^def test_", re.MULTILINE)
WORDS = re.compile(r'^@pytest\.mark\.drill\("', re.MULTILINE)


def test_a_cell_sums_its_tries_and_shows_the_longest_one(tmp_path):
    file = tmp_path / "runs" / "rows.jsonl"
    for seconds, failed in ((31.0, 0), (44.4, 0), (12.0, 1)):
        row = Row(cell="server killed", storage="PostgreSQL", failed=failed, exit_codes=[3, 0], seconds=seconds)
        row.count(range(3), [0, 1, 1])
        row.append_to(file)
    Row(cell="disk full", storage="SQLite", exit_codes=[0], seconds=2.0, seconds_to_end=1.25).append_to(file)
    assert table(read_rows(file)).splitlines() == [
        "| fault | exit codes | SQLite | PostgreSQL |",
        "| --- | --- | --- | --- |",
        "| disk full | 0 | 1 · – · – · 2 s · 1.2 s |  |",
        "| server killed | 3, 0 |  | **1 failed** of 3 · 3 · 3 · 44 s |",
    ]


@pytest.mark.parametrize(
    ("name", "storage"),
    [
        ("sqlite:////srv/study.db", "SQLite"),
        ("journal:///study.journal", "journal"),
        ("postgresql+psycopg://evo:x@127.0.0.1/evo", "PostgreSQL"),
        ("mysql+pymysql://127.0.0.1/evo", "MariaDB"),
        ("redis", "Redis"),
        ("restarted", None),
    ],
)
def test_a_storage_is_that_of_its_url_or_of_its_server(name, storage):
    assert storage_of(name) == storage


def test_every_drill_has_words_for_its_line_of_the_table():
    files = [path for path in Path(__file__).parent.glob("test_*.py") if DRILLS.search(path.read_text())]
    assert len(files) >= 4
    for path in files:
        assert len(FAULT.findall(path.read_text())) == len(WORDS.findall(path.read_text())), path.name
