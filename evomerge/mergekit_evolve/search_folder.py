"""A configuration of mergekit-evolve's as a folder that `evomerge run` takes: search.yaml, space.yaml, evaluator."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import InvalidInput
from evomerge.forms import is_folder, is_there
from evomerge.mergekit_evolve.evolve_evaluator import EvolveEvaluator
from evomerge.mergekit_evolve.evolve_file import Remark, read_evolve_file
from evomerge.mergekit_evolve.evolve_models import read_models
from evomerge.mergekit_evolve.evolve_space import space_content
from evomerge.mergekit_evolve.evolve_spec import EvolveOptions, spec_content
from evomerge.mergekit_evolve.task_folder import copy_tasks, find_tasks
from evomerge.packs.pack import PACK_FILE, check_allowed, load_pack
from evomerge.spec import load_spec
from evomerge.whole_files import folder_in_place

SCHEMA = 1


def import_evolve(path: Path, out: Path, options: EvolveOptions, *, places: Mapping[str, str]) -> dict[str, Any]:
    """Write the search of a configuration, whole or not at all.

    Args:
        out: the folder that is made; its name is the search's.
        places: name -> place of models, see `read_models`.

    Returns:
        A document with `out`, `search` (the path of search.yaml) and `remarks`: kind, line and text of what became of
        every line, option and default.

    Raises:
        InvalidInput: the file or `out` cannot be used, or something in it has no counterpart here; names the line.
    """
    if is_there(out) and not (is_folder(out) and not any(out.iterdir())):
        raise InvalidInput(f"{out} exists, and may have studies in it; give --out a new folder")
    file = read_evolve_file(path)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", out.resolve().name).strip("-_")[:64] or "evolve"
    models = read_models(file, places)
    found = find_tasks([task.name for task in file.tasks], options.task_paths)
    space, on_genome = space_content(file, name, merges_base=models.merges_base)
    evaluator = EvolveEvaluator(file, name, found=found, base=models.folder)
    spec, on_search = spec_content(file, options, models, name)
    remarks = _in_order([*models.remarks, *on_genome, *evaluator.remarks, *on_search])
    with folder_in_place(out) as folder:
        (folder / "search.yaml").write_text(_opening(path, remarks) + _yaml(spec), encoding="utf-8")
        (folder / "space.yaml").write_text(_yaml(space), encoding="utf-8")
        (folder / "evaluator").mkdir()
        (folder / "evaluator" / PACK_FILE).write_text(_yaml(evaluator.content), encoding="utf-8")
        copy_tasks([found[task["task"]] for task in evaluator.content["tasks"] if found], folder / "evaluator")
        _check(folder, options)
    return {
        "schema": SCHEMA,
        "out": str(out.resolve()),
        "search": str(out.resolve() / "search.yaml"),
        "remarks": [vars(remark) for remark in remarks],
    }


def _in_order(remarks: list[Remark]) -> list[Remark]:
    """By line; those on options and defaults last."""
    return sorted(remarks, key=lambda remark: (remark.line is None, remark.line or 0))


def _opening(path: Path, remarks: list[Remark]) -> str:
    lines = [f"Written by `evomerge import mergekit-evolve` from {path.name}:", *map(str, remarks)]
    return "".join(f"# {line}\n" for line in lines)


def _yaml(content: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)


def _check(folder: Path, options: EvolveOptions) -> None:
    """Refuse what `run` would refuse without looking into the models."""
    load_spec(folder / "search.yaml")
    try:
        check_allowed(load_pack(folder / "evaluator"), options.allow)
    except InvalidInput as error:
        raise InvalidInput(f"{error} (here: --allow)") from error
