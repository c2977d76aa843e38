"""docs/extending.md, followed to the letter in a copy of the package: each extension with its test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "extending.md"


@dataclass(frozen=True)
class Extension:
    """A section of the page.

    Attributes:
        written: path of a new file -> its text.
        changed: path of a file that is there -> the change, as a diff.
    """

    title: str
    written: dict[str, str]
    changed: dict[str, str]

    @property
    def test(self) -> str:
        (test,) = (path for path in self.written if path.startswith("tests/"))
        return test


def read_page() -> list[Extension]:
    found = []
    for section in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        written = dict(
            re.findall(r"^```python\n# ((?:evomerge|tests)/\S+\.py)\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
        )
        diffs = re.findall(r"^```diff\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
        changed = {re.findall(r"^\+\+\+ b/(\S+)", diff, re.MULTILINE)[0]: diff for diff in diffs}
        if written:
            found.append(Extension(section.splitlines()[0], written, changed))
    return found


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and its tests in another folder, with the data that they read."""
    for name in ("evomerge", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("search_spaces", "evaluators", "examples", "docs", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def run(*words: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("extension", read_page(), ids=lambda extension: extension.title)
def test_an_extension_works_as_the_page_has_it_and_touches_three_files_at_most(
    extension: Extension, copy: Path
) -> None:
    assert len(extension.written) + len(extension.changed) <= 3
    for path, text in extension.written.items():
        assert not (copy / path).exists()
        (copy / path).write_text(text, encoding="utf-8")
    for path, diff in extension.changed.items():
        (copy / "change.diff").write_text(diff, encoding="utf-8")
        run("git", "apply", "change.diff", folder=copy)
        assert (copy / path).read_text(encoding="utf-8") != (ROOT / path).read_text(encoding="utf-8")
    upward = "tests/test_floors.py::test_no_import_of_the_package_runs_upward"
    printed = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", extension.test, upward, folder=copy)
    assert re.search(r"^\d+ passed", printed, re.MULTILINE), printed


def test_the_page_shows_every_kind_of_extension() -> None:
    kinds = ("elementwise", "statistics", "baseline", "sampler", "evaluator", "engine")
    titles = " ".join(extension.title.lower() for extension in read_page())
    assert [kind for kind in kinds if kind not in titles] == []
