"""The mean weights of trained coefficients, by which a search space finds the nearest of its own merges."""

import pytest
import torch

from evomerge.checkpoints.recipe_files import store_tensors
from evomerge.errors import InvalidInput
from evomerge.optimisation.coefficients import mean_weights
from evomerge.recipe import ModelRef, Recipe, Rule

SOURCES = ("left", "right")


def recipe(files):
    rule = Rule(tensors=("a", "b"), method="column_arithmetic", sources=SOURCES, parameters={"weight": (1.0, 3.0)})
    return Recipe(
        base=ModelRef("base", "none"),
        sources=tuple(ModelRef(name, "none") for name in SOURCES),
        rules=(rule,),
        dtype="float32",
        files=files,
    )


def test_a_mean_over_columns_is_the_weight_of_a_task_vector(tmp_path):
    coefficients = {"a": torch.tensor([[0.0, 1.0], [0.25, 0.75]]), "b": torch.tensor([0.5, -0.5])}
    digest = store_tensors(tmp_path, coefficients, {})
    assert mean_weights(recipe({"coefficients": digest}), tmp_path) == {
        "a": {"left": 0.5, "right": 1.5},
        "b": {"left": 0.5, "right": -1.5},
    }


def test_a_recipe_without_the_file_of_its_coefficients_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="names no file of coefficients"):
        mean_weights(recipe({}), tmp_path)
