"""Rows of the drills: what each try found, as JSON lines, and the table of them.

    python tests/drills/drill_rows.py ROWS

prints the Markdown table of a file of rows, as `make drills` writes one. A line of the table is a fault, a column a
storage; its cell has the number of tries, the results that they lost and doubled, the seconds of the longest one, and
where a signal was sent the longest time from it to the end of the process.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

STORAGES = {
    "sqlite": "SQLite",
    "journal": "journal",
    "postgres": "PostgreSQL",
    "postgresql": "PostgreSQL",
    "mariadb": "MariaDB",
    "mysql": "MariaDB",
    "redis": "Redis",
}


def storage_of(name: str) -> str | None:
    """The storage of a URL, or of a fixture of that name; None where it is another thing."""
    return STORAGES.get(name.partition(":")[0].partition("+")[0])


@dataclass(kw_only=True)
class Row:
    """The findings of one try of a drill.

    Attributes:
        cell: the fault, in words.
        storage: None where a drill has none.
        tries: 1; sums of rows have more.
        failed: tries that did not end as they should.
        lost: results that are missing; None where nobody counted.
        doubled: results that are there more than once.
        exit_codes: of the processes, in the order in which they ended.
        seconds: of the whole drill.
        seconds_to_end: from a signal to the end of the process, where it was sent one.
    """

    cell: str
    storage: str | None = None
    tries: int = 1
    failed: int = 0
    lost: int | None = None
    doubled: int | None = None
    exit_codes: list[int] = field(default_factory=list)
    seconds: float = 0.0
    seconds_to_end: float | None = None

    def count(self, wanted: Iterable[object], found: Sequence[object]) -> None:
        """Note how many of the wanted results are missing, and how many are there more than once."""
        self.lost = len(set(wanted) - set(found))
        self.doubled = len(found) - len(set(found))

    def append_to(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(self)) + "\n")


def read_rows(file: Path) -> list[Row]:
    return [Row(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table, faults in the order of their names."""
    cells: defaultdict[str, defaultdict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[row.cell][row.storage or "–"].append(row)
    present = {storage for found in cells.values() for storage in found}
    storages = [each for each in dict.fromkeys((*STORAGES.values(), "–")) if each in present]
    lines = [["fault", "exit codes", *storages], ["---"] * (len(storages) + 2)]
    for cell, found in sorted(cells.items(), key=lambda each: each[0].lower()):
        everything = [row for each in found.values() for row in each]
        lines.append([cell, _exit_codes(everything), *(_cell(found.get(storage, [])) for storage in storages)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _exit_codes(rows: Sequence[Row]) -> str:
    """The sequences of exit codes that occurred."""
    found = dict.fromkeys(", ".join(map(str, row.exit_codes)) for row in rows if row.exit_codes)
    return " or ".join(found) or "–"


def _cell(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    failed, tries = sum(row.failed for row in rows), sum(row.tries for row in rows)
    ended = [row.seconds_to_end for row in rows if row.seconds_to_end is not None]
    parts = [
        f"**{failed} failed** of {tries}" if failed else str(tries),
        f"{_sum(row.lost for row in rows)}",
        f"{_sum(row.doubled for row in rows)}",
        f"{max(row.seconds for row in rows):.0f} s",
        *([f"{max(ended):.1f} s"] if ended else []),
    ]
    return " · ".join(parts)


def _sum(numbers: Iterable[int | None]) -> Any:
    """The sum; a dash where one of them is unknown."""
    known = list(numbers)
    return "–" if None in known else sum(each for each in known if each is not None)


if __name__ == "__main__":
    print(table(read_rows(Path(sys.argv[1]))))
