from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from evomerge.errors import InvalidInput
from evomerge.recipe import ModelRef, PathLayer, Recipe, RecipeSet, Rule, single_source

BASE = ModelRef("base", "/models/base", revision=None, fingerprint="b" * 64)
MATH = ModelRef("math", "org/math", revision="main", fingerprint="c" * 64)
CODE = ModelRef("code", "org/code", revision="main", fingerprint="d" * 64)
TIES = Rule(
    tensors=("x", "y"),
    method="ties",
    sources=("math", "code"),
    parameters={"density": (0.2, 0.5), "lambda": 1.0},
    options={"trim_scope": "tensor"},
)
COPY = Rule(
    tensors=("z",), method="linear", sources=("math",), parameters={"weight": (1.0,)}, options={"normalize": False}
)
PATH = (PathLayer("math", 0, 1.0), PathLayer("code", 1, 0.5))
RECIPE = Recipe(base=BASE, sources=(MATH, CODE), rules=(TIES, COPY), dtype="bfloat16", seed=7)
OUTER = Rule(
    tensors=("x",),
    method="linear",
    sources=("soup", "code"),
    parameters={"weight": (0.5, 0.5)},
    options={"normalize": True},
)
NESTED = Recipe(
    base=BASE,
    sources=(MATH, CODE),
    rules=(OUTER,),
    dtype="bfloat16",
    ingredients={"soup": replace(RECIPE, files={"coefficients": "f" * 64})},
)


def test_where_the_sources_lie_does_not_change_the_digest() -> None:
    moved = replace(RECIPE, base=replace(BASE, location="/elsewhere", revision="x"))
    assert moved.digest == RECIPE.digest
    moved = replace(RECIPE, sources=(replace(MATH, location="/copy", revision=None), CODE))
    assert moved.digest == RECIPE.digest


def test_without_a_fingerprint_the_location_is_all_there_is() -> None:
    first = replace(RECIPE, base=replace(BASE, fingerprint=None))
    assert replace(first, base=replace(first.base, location="/elsewhere")).digest != first.digest
    assert replace(first, base=replace(first.base, revision="v2")).digest != first.digest


@pytest.mark.parametrize(
    "change",
    [
        {"base": replace(BASE, fingerprint="e" * 64)},
        {"base": replace(BASE, name="other")},
        {"sources": (CODE, MATH)},
        {"sources": (MATH, replace(CODE, fingerprint="e" * 64))},
        {"sources": (MATH,)},
        {"dtype": "float32"},
        {"seed": 8},
        {"semantics": 2},
        {"rules": (TIES,)},
        {"rules": (replace(TIES, tensors=("x",)), COPY)},
        {"rules": (replace(TIES, method="dare_ties"), COPY)},
        {"rules": (replace(TIES, sources=("code", "math")), COPY)},
        {"rules": (replace(TIES, parameters={"density": (0.2, 0.5), "lambda": 1.0000001}), COPY)},
        {"rules": (replace(TIES, parameters={"density": (0.5, 0.2), "lambda": 1.0}), COPY)},
        {"rules": (replace(TIES, options={"trim_scope": "global"}), COPY)},
        {"rules": (replace(TIES, options={}), COPY)},
        {"layers": PATH},
    ],
)
def test_n22_everything_else_changes_the_digest(change: dict[str, Any]) -> None:
    assert replace(RECIPE, **change).digest != RECIPE.digest


def test_the_order_of_parameters_and_options_does_not_change_the_digest() -> None:
    turned = replace(TIES, parameters=dict(reversed(list(TIES.parameters.items()))))
    assert replace(RECIPE, rules=(turned, COPY)).digest == RECIPE.digest


def test_the_digest_is_the_same_in_every_release() -> None:
    assert RECIPE.digest == "f7829ee5f863fab10715495617f678f9a6c6a2872513bdb356af120eea756cf7"


def test_a_recipe_without_layers_does_not_mention_them() -> None:
    assert "layers" not in json.loads(RECIPE.to_json())


def test_a_recipe_with_an_ingredient_comes_back_from_json_as_it_was() -> None:
    twice = replace(NESTED, ingredients={"inner": NESTED})
    again = Recipe.from_json(twice.to_json())
    assert again == twice
    assert again.digest == twice.digest
    assert again.ingredients["inner"].ingredients["soup"].files == {"coefficients": "f" * 64}


def test_a_recipe_without_ingredients_does_not_mention_them() -> None:
    content = json.loads(NESTED.to_json())
    assert "ingredients" not in json.loads(RECIPE.to_json())
    assert "ingredients" not in content["ingredients"]["soup"]


@pytest.mark.parametrize("change", [{"seed": 8}, {"files": {}}, {"dtype": "float32"}, {"rules": (TIES,)}])
def test_everything_in_an_ingredient_is_part_of_the_digest(change: dict[str, Any]) -> None:
    other = {"soup": replace(NESTED.ingredients["soup"], **change)}
    assert replace(NESTED, ingredients=other).digest != NESTED.digest


def test_where_the_sources_of_an_ingredient_lie_does_not_change_the_digest() -> None:
    soup = NESTED.ingredients["soup"]
    moved = replace(soup, base=replace(BASE, location="/elsewhere"), sources=(replace(MATH, revision=None), CODE))
    assert replace(NESTED, ingredients={"soup": moved}).digest == NESTED.digest


@pytest.mark.parametrize(
    "other", [PATH[::-1], PATH[:1], (PATH[0], replace(PATH[1], scale=0.6)), (replace(PATH[0], source="code"), PATH[1])]
)
def test_every_layer_of_a_path_is_part_of_the_digest(other: tuple[PathLayer, ...]) -> None:
    deep = replace(RECIPE, layers=PATH)
    assert Recipe.from_json(deep.to_json()) == deep
    assert replace(RECIPE, layers=other).digest != deep.digest


def test_a_recipe_comes_back_from_json_as_it_was() -> None:
    again = Recipe.from_json(RECIPE.to_json())
    assert again == RECIPE
    assert again.digest == RECIPE.digest
    assert json.loads(RECIPE.to_json())["digest"] == RECIPE.digest


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"coefficients": "../" * 10 + "tmp/x"}, "is no digest of a file"),
        ({"coefficients": "/" + "a" * 63}, "is no digest of a file"),
        ({"coefficients": "A" * 64}, "is no digest of a file"),
        ({"../coefficients": "a" * 64}, "is no role"),
        ({"/coefficients": "a" * 64}, "is no role"),
        ({"..": "a" * 64}, "is no role"),
        ({"": "a" * 64}, "is no role"),
        ({"a\0": "a" * 64}, "is no role"),
    ],
)
def test_files_outside_of_their_folder_cannot_be_named(files: dict[str, str], says: str) -> None:
    for recipe in (replace(RECIPE, files=files), replace(NESTED, ingredients={"soup": replace(RECIPE, files=files)})):
        with pytest.raises(InvalidInput, match=says):
            Recipe.from_json(recipe.to_json())


@pytest.mark.parametrize("name", ["../x", "/x", "..", "a/b"])
def test_models_of_a_set_have_names_and_no_paths(name: str) -> None:
    found = RecipeSet(recipes={name: RECIPE}, tasks={"t": name})
    with pytest.raises(InvalidInput, match="is no model"):
        RecipeSet.from_json(found.to_json())


def test_numbers_keep_all_their_digits_in_json() -> None:
    rule = replace(COPY, parameters={"weight": (0.1 + 0.2,), "t": 1e-17})
    assert Recipe.from_json(replace(RECIPE, rules=(rule,)).to_json()).rules == (rule,)


def test_numbers_that_are_not_finite_have_no_digest() -> None:
    rule = replace(COPY, parameters={"weight": (float("nan"),)})
    with pytest.raises(ValueError, match="JSON compliant"):
        _ = replace(RECIPE, rules=(rule,)).digest


def test_a_single_source_is_a_recipe_too() -> None:
    recipe = single_source(BASE, MATH, ("x", "y"), "float32")
    assert recipe.sources == (MATH,)
    assert recipe.rules[0].parameters == {"weight": (1.0,)}
    assert Recipe.from_json(recipe.to_json()) == recipe
