"""The site of the documentation: every page is in it, and Zensical builds it without a warning."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def site() -> ModuleType:
    """docs/build_site.py."""
    found = importlib.util.spec_from_file_location("build_site", ROOT / "docs" / "build_site.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def paths_of(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else paths_of(value)


def test_the_navigation_has_every_page_of_docs_and_no_other() -> None:
    nav = list(paths_of(tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]))
    assert {path for path in nav if "/" not in path} == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_a_link_leads_to_the_page_in_the_site_or_is_its_text(site: ModuleType) -> None:
    page = ROOT / "docs" / "operations.md"
    text = "[docker/](../docker/README.md) [a](errors.md#x) [spaces](../search_spaces) [here](#y) [far](https://a.b)"
    expected = "[docker/](repository/docker/README.md) [a](errors.md#x) spaces [here](#y) [far](https://a.b)"
    assert site.with_links(text, page, site.pages()) == expected


def test_a_block_of_code_stays_as_it_is(site: ModuleType) -> None:
    text = "```python\nx[0](lost.md)\n```"
    assert site.with_links(text, ROOT / "docs" / "index.md", site.pages()) == text


def test_the_bars_of_formulas_in_tables_are_plain(site: ModuleType) -> None:
    assert site.with_bars("| `a \\| b` | c \\| d |\n`a \\| b`") == "| `a | b` | c \\| d |\n`a \\| b`"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built in a copy of its sources without a warning."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("docs", "examples", "benchmarks", "docker"):
        (copy / name).parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-r", str(ROOT / name), str(copy / name)], check=True)
    for name in ("README.md", "CONTRIBUTING.md", "zensical.toml"):
        (copy / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run([sys.executable, "docs/build_site.py"], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "build" / "site"


def test_the_site_has_the_pages_of_docs(built: Path) -> None:
    page = (built / "first-search" / "index.html").read_text(encoding="utf-8")
    assert "First search in five minutes" in page


def test_the_links_of_llms_txt_and_of_the_pages_that_it_names_are_files_of_the_site(built: Path) -> None:
    named = links_of(built / "llms.txt")
    assert named
    assert [path for path in named if not path.is_file()] == []
    assert [path for page in named for path in links_of(page) if not path.is_file()] == []


def links_of(file: Path) -> list[Path]:
    """The files that a text links to, without those of the web, and without what is in blocks of code."""
    text = re.sub(r"^```.*?^```$", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [file.parent / path for path in re.findall(r"\]\((?!https?:)([^)#\s]+)", text)]
