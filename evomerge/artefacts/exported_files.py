"""Files of a recipe in an export: those of the recipe by their roles, those of its ingredients by their digests."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from evomerge.errors import InvalidInput
from evomerge.recipe import Recipe, all_ingredients
from evomerge.whole_files import pieces, write_whole

RECIPE_FILES = "recipe-files"  # a folder: loaders that take every safetensors file beside a config for weights exist


def exported_names(recipe: Recipe) -> dict[str, str]:
    """Name of each file in an export, without its ending -> the digest of its content. Ingredients may share one."""
    inside = {digest: digest for _, each in all_ingredients(recipe) for digest in each.files.values()}
    return {**inside, **recipe.files}


def take_files(recipe: Recipe, export: Path, folder: Path, digests: Collection[str] | None = None) -> None:
    """Copy the files of an export into a folder, each by its digest, as a bank finds them. What is there stays.

    Args:
        export: the directory of the model.
        digests: of the files that are wanted; None: all.

    Raises:
        InvalidInput: the export lacks one.
    """
    for name, digest in exported_names(recipe).items():
        target = folder / f"{digest}.safetensors"
        if target.exists() or (digests is not None and digest not in digests):
            continue
        write_whole(target, _pieces(export / RECIPE_FILES / f"{name}.safetensors"))


def _pieces(path: Path) -> Iterator[bytes]:
    try:
        yield from pieces(path)
    except OSError as error:
        raise InvalidInput(f"the recipe needs {path}, which cannot be read; copy the export as a whole") from error
