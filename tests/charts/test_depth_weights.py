"""Weights of a recipe over depth, by source and layer."""

import math

from evomerge.charts.depth_weights import depth_weights
from evomerge.recipe import ModelRef, PathLayer, Recipe, Rule

BASE, CODE, MATHS = (ModelRef(name, f"/models/{name}") for name in ("base", "code", "maths"))


def tensor(layer, name="weight"):
    return f"model.layers.{layer}.{name}"


def rule(tensors, weights, sources=("code", "maths"), method="task_arithmetic"):
    return Rule(tensors=tuple(tensors), method=method, sources=sources, parameters={"weight": weights}, options={})


def recipe(*rules, **changes):
    return Recipe(base=BASE, sources=(CODE, MATHS), rules=rules, dtype="float32", **changes)


def test_a_cell_is_the_mean_weight_of_its_tensors(tmp_path):
    found = depth_weights(
        recipe(
            rule([tensor(0, "a"), "embed.weight"], (0.2, 1.0)),
            rule([tensor(0, "b")], (0.4, 0.0)),
            rule([tensor(1, "a"), tensor(1, "b")], (-0.5, 0.25)),
        ),
        tmp_path,
    )
    assert found.sources == ("code", "maths")
    assert found.columns == ("0", "1", "outside")
    assert [[round(value, 6) for value in row] for row in found.values] == [[0.3, -0.5, 0.2], [0.5, 0.25, 1.0]]
    assert found.largest == 1.0


def test_one_weight_for_all_is_one_column(tmp_path):
    found = depth_weights(recipe(rule([tensor(0), tensor(1)], (0.2, 0.3))), tmp_path)
    assert (found.columns, found.values) == (("all",), ((0.2,), (0.3,)))


def test_a_merge_of_merges_is_the_sum_of_what_they_are_made_of(tmp_path):
    tensors = [tensor(0), tensor(1)]
    soup = recipe(rule(tensors, (0.5, 0.5)))
    found = depth_weights(recipe(rule(tensors, (2.0,), ("soup",)), ingredients={"soup": soup}), tmp_path)
    assert (found.sources, found.values) == (("code", "maths"), ((1.0,), (1.0,)))


def test_a_merge_of_merges_that_is_no_such_sum_has_these_merges_as_rows(tmp_path):
    tensors = [tensor(0), tensor(1)]
    ties = recipe(rule(tensors, (1.0, 1.0), method="ties"))
    found = depth_weights(recipe(rule(tensors, (0.8,), ("ties",)), ingredients={"ties": ties}), tmp_path)
    assert (found.sources, found.values) == (("ties",), ((0.8,),))


def test_a_source_that_a_layer_does_not_take_has_no_weight_there(tmp_path):
    found = depth_weights(recipe(rule([tensor(0)], (0.5, 0.5)), rule([tensor(1)], (1.0,), ("code",))), tmp_path)
    assert found.values[0] == (0.5, 1.0)
    assert found.values[1][0] == 0.5
    assert math.isnan(found.values[1][1])


def test_paths_and_merges_without_weights_have_none(tmp_path):
    assert depth_weights(recipe(layers=(PathLayer("code", 0, 1.0),)), tmp_path) is None
    slerp = Rule(tensors=(tensor(0),), method="slerp", sources=("code", "maths"), parameters={"t": 0.5}, options={})
    assert depth_weights(recipe(slerp), tmp_path) is None
