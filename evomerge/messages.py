"""Words of messages: lists, foreign errors in one line, durations, bytes, large numbers, chances, p-values."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from textwrap import wrap
from typing import Final


def some(names: Collection[str], shown: int = 3, separator: str = ", ") -> str:
    """The first few names, and the number of the others: a, b, c and 4 more."""
    first = separator.join(list(names)[:shown])
    if len(names) <= shown:
        return first
    return f"{first}{'' if separator == ', ' else separator.rstrip()} and {len(names) - shown} more"


def listed(names: Sequence[str]) -> str:
    """All names: a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def in_lines(name: str, width: int) -> str:
    """A name over as many lines as it needs, broken after underscores, hyphens and spaces where it has them."""
    lines = wrap(name.replace("_", "_ "), width)
    return "\n".join(line.replace("_ ", "_") for line in lines)


def counted(number: int, noun: str) -> str:
    """1 item, 2,400 items."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def marked(label: str, models: int, *, control: bool = False) -> str:
    """The label of a row, with a mark where it is several models or a control: emr (3 models)."""
    marks = [f"{models} models"] * (models > 1) + ["control"] * control
    return f"{label} ({', '.join(marks)})" if marks else label


LESS_IS_BETTER: Final = "↓: less is better"


def task_label(task: str, higher_is_better: bool) -> str:
    """A task with a mark where a lower score is the better one, for which `LESS_IS_BETTER` is the key: wikitext ↓."""
    return task if higher_is_better else f"{task} ↓"


def first_line(error: Exception) -> str:
    """The first line of an error that another library raised, or its type where it has no text."""
    lines = _lines(error)
    return lines[0] if lines else type(error).__name__


def last_line(error: Exception, longest: int = 300) -> str:
    """The last line of an error, or its type where it has no text: the cause, where machinery comes first."""
    lines = _lines(error)
    return (lines[-1] if lines else type(error).__name__)[:longest]


def in_one_line(error: BaseException, longest: int = 400) -> str:
    """Type and whole text of an error, its lines joined, cut after `longest` characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:longest]


def duration(seconds: float) -> str:
    """Seconds: 42 s, 3 min 20 s, 5 h 10 min."""
    if not math.isfinite(seconds):
        return "an unknown time"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def duration_of_one(seconds: float) -> str:
    """Seconds of one candidate, below ten with two digits: 0.42 s, 3.1 s, 42 s, 2 min 5 s."""
    return f"{seconds:.2g} s" if seconds < 9.95 else duration(seconds)


def in_bytes(count: int) -> str:
    """Bytes in decimal units, with one decimal below 100: 640 MB, 1.4 GB, 12 B."""
    if count < 1000:
        return f"{count} B"
    size = float(count)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.5:
            return f"{size:.1f} {unit}" if size < 99.95 else f"{size:.0f} {unit}"
    return f"{size / 1000:.1f} TB"


def in_thousands(count: int) -> str:
    """A large number with three digits: 640 k, 1.2 M."""
    size = float(count)
    if size < 1000:
        return str(count)
    for unit in ("k", "M", "G"):
        size /= 1000
        if size < 999.5:
            return f"{size:.3g} {unit}"
    return f"{size / 1000:,.3g} T" if size < 999_500 else f"{size / 1000:,.0f} T"


def plain_score(value: float) -> str:
    """A score with four decimals, or with two digits where those would be zeros: 0.7123, -3.2e-06."""
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.0005 else f"{value:.2g}"


def in_percent(chance: float | None) -> str:
    """A chance as percentage: 34 %, below 1 %, above 99 % where it is not certain; unknown where it is None."""
    if chance is None:
        return "unknown"
    if 0.995 <= chance < 1:
        return "above 99 %"
    return "below 1 %" if chance < 0.01 else f"{100 * chance:.0f} %"


def p_value(p: float | None) -> str:
    """A p-value with two digits: 0.043, 0.00043, < 0.0001; a dash where nothing could be tested."""
    if p is None:
        return "–"
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}"


def _lines(error: Exception) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()]
