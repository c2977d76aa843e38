"""The page of invariants and the tests agree: each code in a test's name has a row, each test in the page exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "invariants.md").read_text(encoding="utf-8")
FILES = [path for folder in ("tests", "evomerge") for path in (ROOT / folder).rglob("*.py")]
TESTS = {
    f"{path.relative_to(ROOT).as_posix()}::{name}"
    for path in FILES
    for name in re.findall(r"^\s*def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
}
ROWS = dict(re.findall(r"^\| (n\d+) \| (.+) \|$", PAGE, re.MULTILINE))


def test_every_test_with_a_code_is_named_in_the_row_of_that_code():
    named = [(test, code) for test in TESTS for code in re.findall(r"(n\d+)_", _codes(test))]
    assert named
    assert [(test, code) for test, code in named if f"`{test}`" not in ROWS.get(code, "")] == []


def test_every_test_that_the_page_names_exists():
    assert sorted(set(re.findall(r"`([\w/]+\.py::test_\w+)`", PAGE)) - TESTS) == []


def test_every_row_names_a_test_or_admits_that_it_has_none():
    assert list(ROWS) == list(dict.fromkeys(re.findall(r"^\| (n\d+) \|", PAGE, re.MULTILINE)))
    assert [code for code, row in ROWS.items() if "::test_" not in row and "Not held by a test yet" not in row] == []


def _codes(test: str) -> str:
    found = re.search(r"::test_((?:n\d+_)+)", test)
    return found[1] if found else ""
