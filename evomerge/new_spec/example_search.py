"""A ready search that ships with evomerge, copied with its models: a first search needs nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

from evomerge.errors import InvalidInput, unknown_name
from evomerge.forms import is_folder, is_there
from evomerge.new_spec.spec_folder import FILE, SCHEMA
from evomerge.shipped import shipped_folder
from evomerge.whole_files import folder_in_place

EXAMPLES: Final = ("toy",)
MODELS: Final = "models"


def copy_example(name: str, out: Path) -> dict[str, Any]:
    """Copy search.yaml and the models of a shipped example into a new folder, whole or not at all.

    Returns:
        A document as `new_search` returns it.

    Raises:
        InvalidInput: there is no such example, or `out` has files, among which may be studies.
    """
    if name not in EXAMPLES:
        raise unknown_name("example", name, EXAMPLES)
    if is_there(out) and not (is_folder(out) and not any(out.iterdir())):
        raise InvalidInput(f"{out} exists, and may have studies in it; give --out a new folder")
    source = shipped_folder("examples") / name
    with folder_in_place(out) as folder:
        shutil.copyfile(source / FILE, folder / FILE)
        shutil.copytree(source / MODELS, folder / MODELS)
    return {
        "schema": SCHEMA,
        "search": str(out.absolute() / FILE),
        "text": (source / FILE).read_text(encoding="utf-8"),
        "notes": [],
    }
