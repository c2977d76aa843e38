"""Files of recipes in an export, and back in a folder by their content."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evomerge.artefacts.exported_files import RECIPE_FILES, exported_names, take_files
from evomerge.checkpoints.recipe_files import load_tensors, store_tensors
from evomerge.errors import InvalidInput
from evomerge.recipe import ModelRef, Recipe


def _stored(folder: Path, value: float) -> str:
    return store_tensors(folder, {"x": torch.tensor([value])}, {"sources": "[]"})


def _nested(folder: Path) -> Recipe:
    """A recipe with a file, two ingredients with files of the same role, and one inside of these that shares one."""
    plain = Recipe(base=ModelRef("base", "org/base"), sources=(), rules=(), dtype="float32")
    first, second, third = (_stored(folder, value) for value in (1.0, 2.0, 3.0))
    deep = replace(plain, files={"coefficients": second, "grams.math": third})
    inner = replace(plain, files={"coefficients": second}, ingredients={"deep": deep})
    other = replace(plain, files={"coefficients": third})
    return replace(plain, files={"coefficients": first}, ingredients={"inner": inner, "other": other})


def _export(recipe: Recipe, files: Path, out: Path) -> None:
    (out / RECIPE_FILES).mkdir(parents=True)
    for name, digest in exported_names(recipe).items():
        (files / f"{digest}.safetensors").rename(out / RECIPE_FILES / f"{name}.safetensors")


def test_files_of_ingredients_do_not_take_each_others_place(tmp_path: Path) -> None:
    recipe = _nested(tmp_path / "files")
    names = exported_names(recipe)
    assert names["coefficients"] == recipe.files["coefficients"]
    inner, other = (recipe.ingredients[name].files["coefficients"] for name in ("inner", "other"))
    assert names == {"coefficients": recipe.files["coefficients"], inner: inner, other: other}


def test_the_files_of_an_export_are_found_by_their_content_again(tmp_path: Path) -> None:
    recipe = _nested(tmp_path / "files")
    _export(recipe, tmp_path / "files", tmp_path / "out")
    take_files(recipe, tmp_path / "out", tmp_path / "again")
    values = [load_tensors(tmp_path / "again", digest)[0]["x"].item() for digest in exported_names(recipe).values()]
    assert sorted(values) == [1.0, 2.0, 3.0]


def test_only_files_that_are_wanted_have_to_be_there(tmp_path: Path) -> None:
    recipe = _nested(tmp_path / "files")
    _export(recipe, tmp_path / "files", tmp_path / "out")
    gone = recipe.ingredients["other"].files["coefficients"]
    (tmp_path / "out" / RECIPE_FILES / f"{gone}.safetensors").unlink()
    take_files(recipe, tmp_path / "out", tmp_path / "some", [recipe.files["coefficients"]])
    assert [path.stem for path in (tmp_path / "some").iterdir()] == [recipe.files["coefficients"]]
    with pytest.raises(InvalidInput, match="cannot be read; copy the export as a whole"):
        take_files(recipe, tmp_path / "out", tmp_path / "all")


def test_no_file_is_taken_to_another_folder(tmp_path: Path) -> None:
    recipe = _nested(tmp_path / "files")
    _export(recipe, tmp_path / "files", tmp_path / "out")
    theirs = replace(recipe, files={"coefficients": "../../mine"}).to_json()
    with pytest.raises(InvalidInput, match="is no digest of a file"):
        take_files(Recipe.from_json(theirs), tmp_path / "out", tmp_path / "a" / "b")
    assert not (tmp_path / "mine.safetensors").exists()
