"""The fenced blocks of the pages: commands, YAML and Python, with the marks that stand before them.

A mark is an HTML comment on the line before a block: `<!-- parsed: REASON -->`, it cannot run here, its commands are
parsed; `<!-- exit: CODE -->`, its last command ends with this code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
BLOCK = re.compile(r"(?:^<!-- (\w+): ([^\n]*?) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\S+\.(?:yaml|yml|py))\n")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block.

    Attributes:
        mark: word and value of the comment before it, such as ("exit", "2").
    """

    page: Path
    line: int
    language: str
    text: str
    mark: tuple[str, str] | None = None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that the block is, by its first line."""
        found = FILE.match(self.text)
        return found.group(1) if found else None

    @property
    def runs(self) -> bool:
        """Whether the tests run it."""
        return self.language in ("console", "python") and (self.mark is None or self.mark[0] != "parsed")

    @property
    def exit_code(self) -> int:
        """The exit code of its last command."""
        return int(self.mark[1]) if self.mark is not None and self.mark[0] == "exit" else 0


def read_blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page that name their language."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page=page,
            line=text.count("\n", 0, found.start(3)) + 1,
            language=found.group(3),
            text=found.group(4),
            mark=(found.group(1), found.group(2)) if found.group(1) else None,
        )
        for found in BLOCK.finditer(text)
    ]


def split_console(text: str) -> list[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines that it prints."""
    commands: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            commands.append((line.removeprefix("$ "), []))
        elif line.strip():
            commands[-1][1].append(line)
    return commands
