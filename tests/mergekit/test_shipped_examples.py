"""Merges with the fields of the example files that mergekit's repository ships: each is read as what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.catalogue import build_catalogue
from evomerge.mergekit.import_yaml import import_merge, real_models
from evomerge.mergekit.merge_file import read_merge_file
from evomerge.recipe import ModelRef, Recipe

DEPTH = 5
SUFFIXES = ("input_layernorm", "mlp.down_proj", "self_attn.q_proj")
CATALOGUE = build_catalogue(
    {f"model.layers.{layer}.{suffix}.weight": ((4, 4), "float16") for layer in range(DEPTH) for suffix in SUFFIXES}
    | {"model.embed_tokens.weight": ((4, 4), "float16"), "lm_head.weight": ((4, 4), "float16")}
)

LINEAR = """\
models:
  - model: org/first
    parameters: {weight: 1.0}
  - model: org/second
    parameters: {weight: 0.3}
  - model: org/third
    parameters: {weight: 0.5}
merge_method: linear
dtype: float16
"""

BIO_MERGE = """\
models:
  - model: org/first
    parameters: {density: 0.5, weight: 0.5}
  - model: org/second
    parameters: {density: 0.5, weight: 0.5}
merge_method: ties
base_model: org/base
parameters: {normalize: false, int8_mask: true}
dtype: float16
"""

GRADIENT_SLERP = """\
slices:
  - sources:
      - {model: org/first, layer_range: [0, 5]}
      - {model: org/second, layer_range: [0, 5]}
merge_method: slerp
base_model: org/first
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - value: 0.5
dtype: float16
"""

TIES = """\
models:
  - model: org/first
    parameters: {density: [1, 0.7, 0.1], weight: 1.0}
  - model: org/second
    parameters: {density: 0.5, weight: [0, 0.3, 0.7, 1]}
  - model: org/third
    parameters:
      density: 0.33
      weight: [{filter: mlp, value: 0.5}, {value: 0}]
merge_method: ties
base_model: org/base
parameters: {normalize: true, int8_mask: true}
dtype: float16
"""

MEGA = f"""\
{GRADIENT_SLERP}name: gradient-slerp
---
models:
  - model: gradient-slerp
    parameters: {{density: [1, 0.7, 0.1], weight: 1.0}}
  - model: org/third
    parameters:
      density: 0.33
      weight: [{{filter: mlp, value: 0.5}}, {{value: 0}}]
merge_method: ties
base_model: org/base
parameters: {{normalize: true, int8_mask: true}}
dtype: float16
name: gradient-slerp-ties
"""

STACK = """\
slices:
  - sources: [{model: org/first, layer_range: [0, 3]}]
  - sources: [{model: org/second, layer_range: [2, 5]}]
merge_method: passthrough
dtype: float16
"""


def _read(text: str, tmp_path: Path) -> Recipe:
    file = tmp_path / "example.yml"
    file.write_text(text)
    documents = read_merge_file(file)
    refs = {model: ModelRef(model.removeprefix("org/"), model) for model in real_models(documents)}
    return import_merge(documents, refs, CATALOGUE).recipe


def _values(recipe: Recipe, parameter: str, suffix: str) -> list[object]:
    """By layer."""
    found = {name: rule.parameters[parameter] for rule in recipe.rules for name in rule.tensors}
    return [found[f"model.layers.{layer}.{suffix}.weight"] for layer in range(DEPTH)]


def test_an_average_of_three_models(tmp_path: Path) -> None:
    (rule,) = _read(LINEAR, tmp_path).rules
    assert (rule.method, rule.sources, rule.parameters["weight"]) == (
        "linear",
        ("first", "second", "third"),
        (1, 0.3, 0.5),
    )


def test_ties_of_two_models_without_normalisation(tmp_path: Path) -> None:
    recipe = _read(BIO_MERGE, tmp_path)
    (rule,) = recipe.rules
    assert (recipe.base.name, rule.sources, rule.options["weighting"]) == ("base", ("first", "second"), "sum")


def test_an_interpolation_with_gradients_for_parts_of_the_layers(tmp_path: Path) -> None:
    recipe = _read(GRADIENT_SLERP, tmp_path)
    assert _values(recipe, "t", "self_attn.q_proj") == [0, 0.5, 0.3, 0.7, 1]
    assert _values(recipe, "t", "mlp.down_proj") == [1, 0.5, 0.7, 0.3, 0]
    assert _values(recipe, "t", "input_layernorm") == [0.5] * DEPTH


def test_ties_with_gradients_of_density_and_weight_and_a_weight_for_the_mlps_alone(tmp_path: Path) -> None:
    recipe = _read(TIES, tmp_path)
    densities = [pytest.approx(value) for value in (1, 0.85, 0.7, 0.4, 0.1)]
    assert [first for first, _, _ in _values(recipe, "density", "mlp.down_proj")] == densities
    assert [third for _, _, third in _values(recipe, "weight", "mlp.down_proj")] == [0.5] * DEPTH
    assert [third for _, _, third in _values(recipe, "weight", "self_attn.q_proj")] == [0] * DEPTH


def test_two_merges_of_which_the_second_takes_the_first(tmp_path: Path) -> None:
    recipe = _read(MEGA, tmp_path)
    assert {rule.sources for rule in recipe.rules} == {("gradient-slerp", "third")}
    assert {rule.method for rule in recipe.ingredients["gradient-slerp"].rules} == {"slerp"}
    assert (recipe.base.name, recipe.ingredients["gradient-slerp"].base.name) == ("base", "base")


def test_a_stack_of_the_layers_of_two_models(tmp_path: Path) -> None:
    layers = [(layer.source, layer.layer) for layer in _read(STACK, tmp_path).layers]
    assert layers == [("first", 0), ("first", 1), ("first", 2), ("second", 2), ("second", 3), ("second", 4)]
