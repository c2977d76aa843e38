"""Writing a merged model as a Hugging Face model directory: aside, then renamed, so that none is seen half-written."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from evomerge.artefacts.export_form import ExportForm, export_form
from evomerge.artefacts.export_names import CODE, MODEL, RECIPE
from evomerge.artefacts.exported_files import RECIPE_FILES
from evomerge.artefacts.output_folder import check_replaceable
from evomerge.artefacts.streamed_weights import planned_tensors, stream_weights
from evomerge.artefacts.tensor_file import PlannedTensor
from evomerge.artefacts.weight_files import MAX_SHARD_BYTES, as_json, copy_files, write_text
from evomerge.checkpoints.digests import dtype_name
from evomerge.checkpoints.safetensors_files import INDEX
from evomerge.checkpoints.source import Source
from evomerge.checkpoints.stacked_source import stacked_source
from evomerge.errors import InvalidInput
from evomerge.licenses import LEGAL
from evomerge.messages import counted, some
from evomerge.recipe import Recipe
from evomerge.tensors.rounding import rounded_copy
from evomerge.whole_files import folder_in_place


def write_model(
    out: Path,
    *,
    base: Source,
    tensors: Iterable[tuple[str, torch.Tensor]],
    dtype: torch.dtype,
    recipe: Recipe,
    files: Mapping[str, str] | None = None,
    recipe_files: Mapping[str, Path] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a model directory that `from_pretrained` loads, with the very bits that were given.

    Args:
        out: the directory. It may be missing, empty, or an earlier export, which is then replaced.
        base: gives config, tokenizer, the tensors that no rule of the recipe names, and unchanged those that its
            language model does not load, such as a vision tower: the class that the config names loads all of them.
            Where the base's own files lack some, the config names the class of the language model. The config of a
            recipe with layers has their number and kinds.
        tensors: the merged tensors by name, in any order; each is written when it comes, and not held.
        dtype: what floating-point tensors must already have; nothing is rounded here, only copies from the base are.
        recipe: written as recipe.json.
        files: further text files by name, such as README.md.
        recipe_files: name -> file that the recipe or an ingredient needs, copied as recipe-files/NAME.safetensors; see
            `exported_names`.
        max_shard_bytes: tensors beyond this go to a further file.

    Raises InvalidInput where `out` holds something else than an earlier export, and ValueError where the tensors are
    not those of the recipe.
    """
    files = dict(files or {})
    check_model_folder(out, base=base, recipe=recipe, files=files)
    if recipe.layers:
        base = stacked_source(base, [layer.layer for layer in recipe.layers])
    with folder_in_place(out) as folder:
        form = export_form(base)
        complete = form.files_of(_complete(base, tensors, dtype, recipe))
        stream_weights(folder, _planned(form, dtype), complete, max_shard_bytes)
        write_text(folder / "config.json", as_json(exported_config(form.config, dtype)))
        write_text(folder / RECIPE, recipe.to_json() + "\n")
        copy_files(_copied_files(base), base.directory, folder)
        for name, text in files.items():
            write_text(folder / name, text)
        for name, path in (recipe_files or {}).items():
            (folder / RECIPE_FILES).mkdir(exist_ok=True)
            shutil.copyfile(path, folder / RECIPE_FILES / f"{name}.safetensors")


def check_model_folder(out: Path, *, base: Source, recipe: Recipe, files: Collection[str]) -> None:
    """Refuse what `write_model` refuses about its folder and its files, before anything is made.

    Args:
        files: names of the text files.
    """
    _check_file_names(files)
    check_replaceable(
        out,
        marker=RECIPE,
        is_export=is_export,
        patterns=(*MODEL, *_copied_files(base), *files),
        sources=(base.directory, *(Path(ref.location) for ref in (recipe.base, *recipe.sources))),
    )


def exported_config(config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The base's config with the dtype of the merge, under both names that versions of transformers read.

    Nested configs that name a dtype get the new one too. Where the base, or a part of it, came from is left out, since
    it may be a local path, and so is the name of its weight file.
    """
    name = dtype_name(dtype)
    return _with_dtype(config, name) | {"dtype": name, "torch_dtype": name}


def _with_dtype(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if key in ("_name_or_path", "transformers_weights"):
            continue
        if key in ("dtype", "torch_dtype"):
            changed[key] = name
        else:
            changed[key] = _with_dtype(value, name) if isinstance(value, Mapping) else value
    return changed


def _planned(form: ExportForm, dtype: torch.dtype) -> list[PlannedTensor]:
    """The tensors of the files, in the order of the catalogue."""
    merged = planned_tensors(form.base.catalogue, dtype_name(dtype))
    header = form.base.weights.header
    return [
        *(replace(tensor, name=stored) for tensor in merged for stored in form.names[tensor.name]),
        *(PlannedTensor(name, *header[name]) for name in form.copied),
    ]


def _complete(
    base: Source, tensors: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype, recipe: Recipe
) -> Iterator[tuple[str, torch.Tensor]]:
    """The given tensors, checked, and then those of the base that no rule names."""
    merged = {name for rule in recipe.rules for name in rule.tensors}
    given = set()
    for name, tensor in tensors:
        _check_tensor(base, name, tensor, dtype)
        if name in given:
            raise ValueError(f"{name} was given twice")
        given.add(name)
        yield name, tensor
        del tensor  # written: gone before the next is made
    if lacking := sorted(merged - given):
        raise ValueError(f"the recipe names {counted(len(lacking), 'tensor')} not given: {some(lacking)}")
    for entry in base.catalogue.entries:
        if entry.name not in given:
            yield entry.name, rounded_copy(entry.name, base.tensors[entry.name], dtype)


def _check_tensor(base: Source, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    if name not in base.catalogue:
        raise ValueError(f"{base.name!r} has no tensor {name}")
    entry = base.catalogue[name]
    if tuple(tensor.shape) != entry.shape:
        raise ValueError(f"{name} has the shape {list(tensor.shape)}, expected {list(entry.shape)}")
    expected = dtype_name(dtype) if entry.is_floating else entry.dtype
    if dtype_name(tensor.dtype) != expected:
        raise ValueError(f"{name} is {dtype_name(tensor.dtype)}, expected {expected}")


def _copied_files(base: Source) -> list[str]:
    """Tokenizer, generation settings and legal texts of the base; its code only where it was allowed to run."""
    patterns = [*LEGAL, "generation_config.json"] + [CODE] * base.remote_code
    names = [path.name for path in base.directory.iterdir() if path.is_file()]
    return sorted({*base.tokenizer_files, *(name for name in names if any(fnmatch(name, p) for p in patterns))})


def _check_file_names(names: Collection[str]) -> None:
    taken = ("config.json", "generation_config.json", RECIPE, INDEX)
    for name in names:
        if not name or Path(name).name != name or name in taken or name.endswith(".safetensors"):
            raise ValueError(f"{name!r} cannot be written beside the model: it is not a free file name")


def is_export(directory: Path) -> bool:
    """Whether a folder has the recipe of an export."""
    try:
        Recipe.from_json((directory / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError, InvalidInput):  # ValueError: text that is no UTF-8
        return False
    return True
