"""The small files beside that of a study which say who holds it."""

from __future__ import annotations

from pathlib import Path


def lock_file(file: Path) -> Path:
    """The file beside a study's file that carries its lock, and says who has it."""
    return file.with_name(f"{file.name}.writer")


def lease_file(journal: Path) -> Path:
    """The file beside a journal that holds its lease."""
    return journal.with_name(f"{journal.name}.lease")
