"""Writing a merged model as a Hugging Face model directory: aside, then renamed, so that none is seen half-written."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from evomerge.checkpoints.digests import dtype_name
from evomerge.checkpoints.export_form import export_form
from evomerge.checkpoints.layer_stack import stacked_source
from evomerge.checkpoints.safetensors_files import INDEX, ONE_FILE
from evomerge.checkpoints.source import Source
from evomerge.checkpoints.tokenizer import PATTERNS as TOKENIZER_PATTERNS
from evomerge.errors import InvalidInput
from evomerge.messages import some
from evomerge.recipe import Recipe
from evomerge.whole_files import flush, flush_folder

RECIPE = "recipe.json"
RECIPE_FILES = "recipe-files"  # a folder: loaders that take every safetensors file beside a config for weights exist
_LEGAL_PATTERNS = (
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)  # licences that ask for a copy of themselves with every derivative
_OWN_PATTERNS = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    RECIPE_FILES,
    INDEX,
    RECIPE,
    "README.md",
    "mergekit.yaml",
)


def write_model(
    out: Path,
    *,
    base: Source,
    tensors: Iterable[tuple[str, torch.Tensor]],
    dtype: torch.dtype,
    recipe: Recipe,
    files: Mapping[str, str] | None = None,
    recipe_files: Mapping[str, Path] | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a model directory that `from_pretrained` loads, with the very bits that were given.

    Args:
        out: the directory. It may be missing, empty, or an earlier export, which is then replaced.
        base: gives config, tokenizer, the tensors that no rule of the recipe names, and unchanged those that its
            language model does not load, such as a vision tower: the class that the config names loads all of them.
            Where the base's own files lack some, the config names the class of the language model. The config of a
            recipe with layers has their number and kinds.
        tensors: the merged tensors by name, in any order; taken one at a time, one shard is in memory.
        dtype: what floating-point tensors must already have; nothing is rounded here, only copies from the base are.
        recipe: written as recipe.json.
        files: further text files by name, such as README.md.
        recipe_files: role -> file that the recipe needs, copied as recipe-files/ROLE.safetensors.
        max_shard_bytes: tensors beyond this go to a further file.

    Raises InvalidInput where `out` holds something else than an earlier export, and ValueError where the tensors are
    not those of the recipe.
    """
    files = dict(files or {})
    _check_file_names(files)
    _check_replaceable(out, base, recipe, files)
    if recipe.layers:
        base = stacked_source(base, [layer.layer for layer in recipe.layers])
    with _renamed_into_place(out) as folder:
        form = export_form(base)
        _write_weights(folder, form.files_of(_complete(base, tensors, dtype, recipe)), max_shard_bytes)
        _write_text(folder / "config.json", _json(exported_config(form.config, dtype)))
        _write_text(folder / RECIPE, recipe.to_json() + "\n")
        for name in _copied_files(base):
            shutil.copyfile(base.directory / name, folder / name)  # the content, where a hub snapshot has a link
        for name, text in files.items():
            _write_text(folder / name, text)
        for role, path in (recipe_files or {}).items():
            (folder / RECIPE_FILES).mkdir(exist_ok=True)
            shutil.copyfile(path, folder / RECIPE_FILES / f"{role}.safetensors")


def exported_config(config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The base's config with the dtype of the merge, under both names that versions of transformers read.

    Nested configs that name a dtype get the new one too. Where the base came from is left out, since it may be a local
    path, and so is the name of its weight file.
    """
    name = dtype_name(dtype)
    return _with_dtype(
        {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_weights")}, name
    ) | {
        "dtype": name,
        "torch_dtype": name,
    }


def _with_dtype(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if key in ("dtype", "torch_dtype"):
            changed[key] = name
        else:
            changed[key] = _with_dtype(value, name) if isinstance(value, Mapping) else value
    return changed


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
    if lacking := sorted(merged - given):
        raise ValueError(f"the recipe names {len(lacking)} tensors that were not given: {some(lacking)}")
    for entry in base.catalogue.entries:
        if entry.name not in given:
            tensor = base.tensors[entry.name]
            yield entry.name, tensor.to(dtype) if entry.is_floating else tensor


def _check_tensor(base: Source, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    if name not in base.catalogue:
        raise ValueError(f"{base.name!r} has no tensor {name}")
    entry = base.catalogue[name]
    if tuple(tensor.shape) != entry.shape:
        raise ValueError(f"{name} has the shape {list(tensor.shape)}, expected {list(entry.shape)}")
    expected = dtype_name(dtype) if entry.is_floating else entry.dtype
    if dtype_name(tensor.dtype) != expected:
        raise ValueError(f"{name} is {dtype_name(tensor.dtype)}, expected {expected}")


def _write_weights(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], max_shard_bytes: int) -> None:
    """Shards are numbered as they fill; their number, which is part of each name, is known only at the end."""
    shards = []
    for number, shard in enumerate(_shards(tensors, max_shard_bytes), start=1):
        save_file(shard, folder / f"{number}.safetensors", metadata={"format": "pt"})
        shards.append({name: tensor.nbytes for name, tensor in shard.items()})
    if len(shards) == 1:
        (folder / "1.safetensors").rename(folder / ONE_FILE)
        return
    weight_map: dict[str, str] = {}
    for number, shard_sizes in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        (folder / f"{number}.safetensors").rename(folder / file)
        weight_map |= dict.fromkeys(shard_sizes, file)
    total = sum(size for shard_sizes in shards for size in shard_sizes.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_text(folder / INDEX, _json(index))


def _shards(tensors: Iterable[tuple[str, torch.Tensor]], max_bytes: int) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > max_bytes:
            yield shard
            shard, size = {}, 0
        # A copy of its own: the caller may give views of one buffer, or the same buffer again and again.
        shard[name] = tensor.detach().to("cpu", copy=True).contiguous()
        size += tensor.nbytes
    yield shard


def _copied_files(base: Source) -> list[str]:
    """Tokenizer, generation settings and legal texts of the base; its code only where it was allowed to run."""
    patterns = [*_LEGAL_PATTERNS, "generation_config.json"] + ["*.py"] * base.remote_code
    names = [path.name for path in base.directory.iterdir() if path.is_file()]
    return sorted({*base.tokenizer_files, *(name for name in names if any(fnmatch(name, p) for p in patterns))})


def _check_file_names(names: Collection[str]) -> None:
    taken = ("config.json", "generation_config.json", RECIPE, INDEX)
    for name in names:
        if not name or Path(name).name != name or name in taken or name.endswith(".safetensors"):
            raise ValueError(f"{name!r} cannot be written beside the model: it is not a free file name")


def _check_replaceable(out: Path, base: Source, recipe: Recipe, files: Collection[str]) -> None:
    """Raises InvalidInput where something would be lost that cannot be made again from a recipe."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InvalidInput(f"{out} is not a directory; give a directory that does not exist yet")
    if not out.exists() or not any(out.iterdir()):
        return
    for source in (base.directory, *(Path(ref.location) for ref in (recipe.base, *recipe.sources))):
        if source.exists() and source.resolve().is_relative_to(out.resolve()):
            raise InvalidInput(f"{out} holds a source of this merge, {source}; export to another directory")
    if not _is_export(out):
        raise InvalidInput(
            f"{out} is not empty and not an earlier export (no {RECIPE}); give an empty or a new directory"
        )
    known = (*_OWN_PATTERNS, *TOKENIZER_PATTERNS, *_LEGAL_PATTERNS, *_copied_files(base), *files)
    foreign = sorted(path.name for path in out.iterdir() if not any(fnmatch(path.name, pattern) for pattern in known))
    if foreign:
        raise InvalidInput(
            f"{out} is an earlier export, but also holds {some(foreign)}; move that away or export elsewhere"
        )


def _is_export(directory: Path) -> bool:
    try:
        Recipe.from_json((directory / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


@contextmanager
def _renamed_into_place(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that takes its place when all has been written, and vanishes when something failed."""
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(4)
    folder = out.with_name(f".{out.name}.writing-{token}")
    folder.mkdir()
    try:
        yield folder
        for path in folder.rglob("*"):
            flush(path)
        flush_folder(folder)
        _take_place(folder, out, out.with_name(f".{out.name}.replaced-{token}"))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _take_place(folder: Path, out: Path, aside: Path) -> None:
    if not out.exists() or not any(out.iterdir()):
        folder.replace(out)  # onto an empty directory or nothing: one atomic step
        return
    out.rename(aside)
    try:
        folder.rename(out)
    except BaseException:
        aside.rename(out)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
