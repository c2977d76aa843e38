"""The site of the documentation: `make docs` writes it to build/site.

The pages of docs/ also link to READMEs elsewhere in the repository, and some of these back. All of them become pages of
the site, below `repository/`; a link to a file that is no page becomes its text. Zensical then builds the site, and
fails at a link or an anchor that leads nowhere. The pages are beside it as Markdown too, to which `llms.txt` links.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ELSEWHERE = ("README.md", "CONTRIBUTING.md", "docker/*.md", "examples/*/*.md", "benchmarks/*.md")
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")
ROW = re.compile(r"^\|.*$", re.MULTILINE)
CODE = re.compile(r"`[^`]*`")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def pages() -> dict[Path, Path]:
    """Every page of the repository, with its path in the site."""
    found = {page: Path(page.name) for page in (ROOT / "docs").glob("*.md")}
    for pattern in ELSEWHERE:
        found |= {page: "repository" / page.relative_to(ROOT) for page in ROOT.glob(pattern)}
    return found


def with_links(text: str, page: Path, places: dict[Path, Path]) -> str:
    """The text of a page with its links as they are in the site."""

    def replaced(match: re.Match[str]) -> str:
        words, path, anchor = match.group(1), match.group(2), match.group(3) or ""
        if not path:
            return match.group(0)
        place = places.get(Path(os.path.normpath(page.parent / path)))
        if place is None:
            return words
        return f"[{words}]({os.path.relpath(place, places[page].parent)}{anchor})"

    def shown(part: str) -> str:
        return part if part.startswith("```") else LINK.sub(replaced, with_bars(part))

    return "".join(map(shown, FENCE.split(text)))


def with_bars(text: str) -> str:
    """The text with plain bars in the code of tables, where GitHub wants them escaped and Zensical does not."""
    return ROW.sub(lambda row: CODE.sub(lambda code: code.group().replace("\\|", "|"), row.group()), text)


def collect(folder: Path) -> None:
    """Write all pages into a folder, in place of what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    places = pages()
    for page, place in places.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(with_links(page.read_text(encoding="utf-8"), page, places), encoding="utf-8")
    for name in ("llms.txt", "site.css"):
        shutil.copy(ROOT / "docs" / name, folder / name)


def add_markdown(folder: Path, site: Path) -> None:
    """Copy the collected pages into the site, each beside the folder that it has become there."""
    for page in folder.rglob("*.md"):
        place = site / page.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(page, place)


def main() -> int:
    """Build the site; the exit code of Zensical."""
    folder = ROOT / "build" / "pages"
    collect(folder)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code == 0:
        add_markdown(folder, ROOT / "build" / "site")
    return code


if __name__ == "__main__":
    sys.exit(main())
