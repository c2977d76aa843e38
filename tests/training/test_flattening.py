"""Merges of merges as one weighted sum of models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evomerge.checkpoints.recipe_files import store_tensors
from evomerge.errors import InvalidInput
from evomerge.merging import merge_state_dicts
from evomerge.methods import resolve_options
from evomerge.optimisation.coefficients import source_weights
from evomerge.optimisation.flattening import flattened
from evomerge.recipe import ModelRef, Recipe, Rule

TENSORS = ("a", "b", "c")
SOURCES = ("left", "right")


def rule(method, sources, weights, tensors=TENSORS):
    return Rule(
        tensors=tensors,
        method=method,
        sources=sources,
        parameters={"weight": weights},
        options=resolve_options(method, {}),
    )


def recipe(*rules, **ingredients):
    return Recipe(
        base=ModelRef("base", "none"),
        sources=tuple(ModelRef(name, "none") for name in SOURCES),
        rules=rules,
        dtype="float32",
        ingredients=ingredients,
    )


SOUP = recipe(rule("linear", SOURCES, (1.0, 3.0)))
SUM = recipe(rule("task_arithmetic", SOURCES, (0.5, 0.25), ("a", "b")))  # c is the base's


def merged(of, models):
    """The merge of a recipe by the reference path, ingredients first."""
    found = dict(models["base"])
    known = {**models, **{name: merged(each, models) for name, each in of.ingredients.items()}}
    for each in of.rules:
        sources = [{name: known[source][name] for name in each.tensors} for source in each.sources]
        base = {name: models["base"][name] for name in each.tensors}
        weights = {"weight": list(each.parameters["weight"])}
        found |= merge_state_dicts(each.method, sources, base, weights, dict(each.options))
    return found


@pytest.mark.parametrize(
    "nested",
    [
        recipe(rule("linear", ("soup", "sum"), (1.0, 3.0)), soup=SOUP, sum=SUM),
        recipe(rule("task_arithmetic", ("soup", "left", "sum"), (0.75, -0.5, 1.25)), soup=SOUP, sum=SUM),
        recipe(
            rule("task_arithmetic", ("inner", "soup"), (0.5, 0.25), ("a",)),
            rule("linear", ("soup",), (1.0,), ("c",)),
            inner=recipe(rule("task_arithmetic", ("soup", "sum"), (0.5, 0.5)), soup=SOUP, sum=SUM),
            soup=SOUP,
        ),
    ],
)
def test_the_sum_of_models_is_the_merge_of_merges(nested):
    generator = torch.Generator().manual_seed(0)
    models = {
        name: {tensor: torch.randn(4, 3, generator=generator) for tensor in TENSORS} for name in ("base", *SOURCES)
    }
    flat = flattened(nested)
    assert not flat.ingredients
    assert flat.sources == nested.sources
    expected = merged(nested, models)
    for name, found in weighted(flat, models).items():
        torch.testing.assert_close(found, expected[name])


def weighted(flat, models):
    found = dict(models["base"])
    for each in flat.rules:
        weights = source_weights(each, "base")
        found |= {name: sum(weight * models[of][name] for of, weight in weights.items()) for name in each.tensors}
    return found


def test_a_recipe_of_models_is_returned_as_it_is():
    assert flattened(SOUP) is SOUP


def test_an_ingredient_that_is_no_weighted_sum_is_refused_by_name():
    ties = recipe(rule("ties", SOURCES, (1.0, 1.0)))
    nested = recipe(rule("linear", ("mixed",), (1.0,)), mixed=recipe(rule("linear", ("ties",), (1.0,)), ties=ties))
    with pytest.raises(InvalidInput, match=r"ingredient .mixed.: ingredient .ties.: .* from a merge by ties"):
        flattened(nested)


def columns(folder, method):
    coefficients = {"a": torch.tensor([[0.0, 1.0], [0.25, 0.75]]), "b": torch.tensor([0.5, -0.5])}
    made = Rule(
        tensors=("a", "b"),
        method=method,
        sources=SOURCES,
        parameters={"weight": (1.0, 2.0)} if method == "column_arithmetic" else {},
        options={"phi": "identity"} if method == "column_linear" else {},
    )
    return replace(recipe(made), files={"coefficients": store_tensors(folder, coefficients, {})})


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        ("column_linear", {"left": 0.25, "right": 0.25, "base": 0.0}),
        ("column_arithmetic", {"left": 0.25, "right": 0.5, "base": -0.25}),
    ],
)
def test_trained_coefficients_count_by_their_mean_where_their_files_are_given(tmp_path, method, weights):
    trained = columns(tmp_path, method)
    nested = recipe(rule("linear", ("trained", "left"), (1.0, 1.0), ("a",)), trained=trained)
    (flat,) = flattened(nested, tmp_path).rules
    found = dict(zip(flat.sources, flat.parameters["weight"], strict=True))
    expected = {"left": weights["left"] + 0.5, "right": weights["right"], "base": weights["base"]}
    assert found == {name: weight for name, weight in expected.items() if weight}
    with pytest.raises(InvalidInput, match="ingredient 'trained'"):
        flattened(nested)
