"""The folder that an export goes to: missing, empty, or an earlier export, which is then replaced."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatch
from pathlib import Path

from evomerge.errors import InvalidInput
from evomerge.messages import some


def check_replaceable(
    out: Path,
    *,
    marker: str,
    is_export: Callable[[Path], bool],
    patterns: Collection[str],
    sources: Iterable[Path],
) -> None:
    """Refuse a folder in which something would be lost that cannot be made again.

    Args:
        marker: the file by which an earlier export is known.
        is_export: whether a folder is an earlier export of this kind.
        patterns: of the names that such an export has.
        sources: directories that are read; none of them may be replaced.

    Raises:
        InvalidInput: the folder is no directory, has a source, or has something that no export of this kind has.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InvalidInput(f"{out} is not a directory; give a directory that does not exist yet")
    if not out.exists() or not any(out.iterdir()):
        return
    for source in sources:
        if source.exists() and source.resolve().is_relative_to(out.resolve()):
            raise InvalidInput(f"{out} holds a source of this merge, {source}; export to another directory")
    if not is_export(out):
        raise InvalidInput(
            f"{out} is not empty and not an earlier export (no {marker}); give an empty or a new directory"
        )
    foreign = sorted(path.name for path in out.iterdir() if not any(fnmatch(path.name, each) for each in patterns))
    if foreign:
        raise InvalidInput(
            f"{out} is an earlier export, but also holds {some(foreign)}; move that away or export elsewhere"
        )
