"""LiNeS as a baseline: weights worked by hand, and the best slope of the grid."""

from dataclasses import replace

import pytest
from baselines.test_baseline_plans import carry_out, ingredients

from evomerge.baselines.baseline_plans import check_baseline, plan_of
from evomerge.baselines.depth_lines import line_recipe
from evomerge.catalogue import build_catalogue
from evomerge.errors import InvalidInput
from evomerge.spec import BaselineSpec

LAYERS = {f"model.layers.{layer}.mlp.up_proj.weight": ((2, 2), "float32") for layer in range(3)}
OUTSIDE = {"model.embed_tokens.weight": ((4, 2), "float32"), "lm_head.weight": ((4, 2), "float32")}


def given(tensors):
    return replace(ingredients([0, 0, 0, 0]), catalogue=build_catalogue(tensors))


def weights_of(recipe):
    assert {rule.method for rule in recipe.rules} == {"task_arithmetic"}
    return {name: rule.parameters["weight"] for rule in recipe.rules for name in rule.tensors}


def test_the_weight_is_alpha_outside_of_the_layers_and_a_line_inside():
    found = weights_of(line_recipe(given({**LAYERS, **OUTSIDE}), 0.25, 0.5))
    layers = [found[name] for name in LAYERS]
    assert layers == [(0.25,) * 3, (0.5,) * 3, (0.75,) * 3]
    assert [found[name] for name in OUTSIDE] == [(0.25,) * 3] * 2


def test_a_single_layer_has_alpha():
    name = "model.layers.0.mlp.up_proj.weight"
    assert weights_of(line_recipe(given({name: ((2, 2), "float32")}), 0.25, 0.5)) == {name: (0.25,) * 3}


def test_the_best_slope_of_the_grid_is_taken_with_alpha_one_nth():
    value = {"lines/0.2": 0.5, "lines/0.4": 0.7, "lines/0.6": None}
    plan = plan_of(BaselineSpec(name="lines", betas=[0.2, 0.4, 0.6]), given({**LAYERS, **OUTSIDE}))
    tried, choice = carry_out(plan, lambda row: value[row.label])
    assert [row.label for row in tried] == list(value)
    found = weights_of(choice.recipe)
    assert [found[name] for name in LAYERS] == [pytest.approx((1 / 3 + slope,) * 3) for slope in (0.0, 0.2, 0.4)]


def test_a_slope_that_is_named_twice_is_scored_once():
    plan = plan_of(BaselineSpec(name="lines", betas=[0.2, 0.2, 0.4]), given(LAYERS))
    tried, choice = carry_out(plan, lambda row: 0.1 if row.label == "lines/0.2" else 0.9)
    assert len(tried) == 2
    assert choice.recipe == tried[1].recipe


def test_a_model_without_layers_has_no_line_and_unknown_settings_are_refused():
    with pytest.raises(InvalidInput, match="no tensor name has a layer number"):
        plan_of(BaselineSpec(name="lines"), given({"w": ((2, 2), "float32")})).send(None)
    with pytest.raises(InvalidInput, match="weights"):
        check_baseline(BaselineSpec(name="lines", weights=[0.1]), ingredients([0, 0, 0, 0]).spec, ["task"])
