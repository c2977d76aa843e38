"""Words of messages: a few of many names, foreign errors in one line, durations, bytes, large numbers."""

from __future__ import annotations

from collections.abc import Collection


def some(names: Collection[str], shown: int = 3) -> str:
    """The first few names, and how many more there are."""
    first = ", ".join(list(names)[:shown])
    return first if len(names) <= shown else f"{first} and {len(names) - shown} more"


def one_line(error: Exception) -> str:
    """The first line of an error that another library raised, or its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def duration(seconds: float) -> str:
    """Seconds: 42 s, 3 min 20 s, 5 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def in_bytes(count: int) -> str:
    """Bytes in decimal units: 640 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count //= 1000
    return f"{count} TB"


def in_thousands(count: int) -> str:
    """A large number with three digits: 640 k, 1.2 M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
