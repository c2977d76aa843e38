"""Recipes as points of a search space: what was decoded comes back, and what can stand for each other does."""

import random
from itertools import permutations
from pathlib import Path

import pytest

from evomerge.catalogue import build_catalogue
from evomerge.recipe import ModelRef, Recipe, Rule
from evomerge.spaces.bound import bind
from evomerge.spaces.nearest import nearest_params
from evomerge.spaces.space import SearchSpace
from evomerge.spaces.space_files import known_spaces, load_space

EXPERTS = [ModelRef("first", "none"), ModelRef("second", "none")]
TENSORS = {
    **{f"model.layers.{layer}.mlp.up_proj.weight": ((4, 4), "float32") for layer in range(4)},
    **{f"model.layers.{layer}.self_attn.q_proj.weight": ((4, 4), "float32") for layer in range(4)},
    "model.embed_tokens.weight": ((8, 4), "float32"),
}


def bound(name):
    experts = EXPERTS[:1] if name == "ot-fusion" else EXPERTS
    return bind(
        load_space(name, Path()), build_catalogue(TENSORS), ModelRef("base", "none"), experts, dtype="float32", seed=1
    )


OTHERS = [name for name in known_spaces() if load_space(name).takes_recipes]  # see tests/recipe_spaces


@pytest.mark.parametrize("name", [name for name in known_spaces() if name not in ("layer-path", *OTHERS)])
def test_a_recipe_of_the_space_comes_back(name):
    space, luck = bound(name), random.Random(1)
    for _ in range(5):
        params = {}
        for param, distribution in space.distributions.items():
            if param in set(space.active(params)):
                choices = getattr(distribution, "choices", None)
                params[param] = luck.choice(choices) if choices else luck.uniform(distribution.low, distribution.high)
        recipe = space.decode(params)
        again = space.decode(nearest_params(space, recipe))
        for rule, other in zip(recipe.rules, again.rules, strict=True):
            assert (rule.method, rule.tensors, rule.options) == (other.method, other.tensors, other.options)
            for parameter, value in rule.parameters.items():
                assert other.parameters[parameter] == pytest.approx(value)


def whole(method, weights, options):
    rule = Rule(
        tensors=tuple(sorted(TENSORS)),
        method=method,
        sources=("first", "second"),
        parameters={"weight": weights},
        options=options,
    )
    return Recipe(base=ModelRef("base", "none"), sources=tuple(EXPERTS), rules=(rule,), dtype="float32")


def test_a_soup_is_task_arithmetic_with_the_same_shares():
    space = bound("task-arithmetic-per-block")
    params = nearest_params(space, whole("linear", (1.0, 3.0), {"normalize": True}))
    assert {value for name, value in params.items() if ".first." in name} == {0.25}
    assert {value for name, value in params.items() if ".second." in name} == {0.75}


def test_an_expert_that_is_left_out_has_no_weight_and_large_weights_end_at_the_range():
    space = bound("task-arithmetic-per-block")
    rule = Rule(
        tensors=tuple(sorted(TENSORS)),
        method="task_arithmetic",
        sources=("second",),
        parameters={"weight": (50.0,)},
        options={},
    )
    params = nearest_params(space, Recipe(base=space.base, sources=(EXPERTS[1],), rules=(rule,), dtype="float32"))
    highest = max(distribution.high for distribution in space.distributions.values())
    assert {value for name, value in params.items() if ".first." in name} == {0.0}
    assert {value for name, value in params.items() if ".second." in name} == {highest}


def test_trained_coefficients_become_the_means_of_the_groups():
    space = bound("task-arithmetic-per-block")
    trained = {name: {"first": 0.2, "second": 0.6} for name in TENSORS}
    trained["model.layers.0.mlp.up_proj.weight"] = {"first": 0.4, "second": 0.6}
    rule = Rule(
        tensors=tuple(sorted(TENSORS)),
        method="column_linear",
        sources=("first", "second"),
        parameters={},
        options={"phi": "identity"},
    )
    params = nearest_params(
        space, Recipe(base=space.base, sources=tuple(EXPERTS), rules=(rule,), dtype="float32"), trained
    )
    first = {name: value for name, value in params.items() if ".first." in name}
    assert first[min(first)] > 0.2
    assert list(first.values()).count(pytest.approx(0.2)) == len(first) - 1


def test_what_the_space_cannot_merge_has_no_place():
    ties = whole("ties", (1.0, 1.0), {})
    assert nearest_params(bound("task-arithmetic-per-block"), ties) is None


@pytest.mark.parametrize("weights", [(0.0, 0.2, 0.8), (0.01, 0.2, 0.79), (0.0, 0.0, 1.0), (0.2, 0.3, 0.5)])
def test_experts_in_another_order_have_the_same_nearest_average(weights):
    of, names = dict(zip("abc", weights, strict=True)), tuple(sorted(TENSORS))
    for order in permutations(of):
        experts = tuple(ModelRef(name, "none") for name in order)
        space = bind(
            load_space("linear-global"), build_catalogue(TENSORS), ModelRef("base", "none"), experts, dtype="x", seed=1
        )
        given = {"weight": tuple(of[name] for name in order)}
        rule = Rule(tensors=names, method="linear", sources=tuple(order), parameters=given, options={"normalize": True})
        recipe = Recipe(base=space.base, sources=experts, rules=(rule,), dtype="x")
        found = space.decode(nearest_params(space, recipe)).rules[0].parameters["weight"]
        assert found == pytest.approx(given["weight"], abs=0.1)  # the box has no zero


def of_pair(method, pair, t):
    space = SearchSpace.model_validate(
        {
            "name": "pairs",
            "groups": {"depth": "layers"},
            "methods": {method: {"parameters": {"t": {"low": 0.0, "high": 1.0}}}},
        }
    )
    experts = [ModelRef(name, "none") for name in pair]
    found = bind(space, build_catalogue(TENSORS), ModelRef("base", "none"), experts, dtype="float32", seed=1)
    return found, found.decode(dict.fromkeys(found.distributions, t))


def test_a_pair_in_the_other_order_has_the_complement_of_its_share():
    space, _ = of_pair("slerp", ("first", "second"), 0.5)
    _, recipe = of_pair("slerp", ("second", "first"), 0.2)
    again = space.decode(nearest_params(space, recipe))
    assert {rule.sources for rule in again.rules} == {("first", "second")}
    assert [rule.parameters["t"] for rule in again.rules] == pytest.approx([0.8] * len(again.rules))


def test_a_pair_whose_order_matters_has_no_place_in_a_space_of_the_other_order():
    space, same = of_pair("nearswap", ("first", "second"), 0.2)
    _, reversed_pair = of_pair("nearswap", ("second", "first"), 0.2)
    assert nearest_params(space, same) == pytest.approx(dict.fromkeys(space.distributions, 0.2))
    assert nearest_params(space, reversed_pair) is None


@pytest.mark.parametrize("parameters", [{"t": {"low": 0.0, "high": 1.0}}, {"score": {"low": 0.0, "high": 1.0}}])
def test_a_pair_with_the_base_has_no_place_among_pairs_of_experts(parameters):
    settings = {"groups": {"depth": "layers"}, "methods": {"slerp": {"parameters": parameters}}}
    space = SearchSpace.model_validate({"name": "experts", **settings})
    experts = bind(space, build_catalogue(TENSORS), ModelRef("base", "none"), EXPERTS, dtype="float32", seed=1)
    _, recipe = of_pair("slerp", ("base", "first"), 0.9)
    assert nearest_params(experts, recipe) is None


def by_layers(weights):
    """Task arithmetic with a weight for each layer; the embedding has that of the first."""
    rules = tuple(
        Rule(
            tensors=tuple(
                name for name in sorted(TENSORS) if f"layers.{layer}." in name or (layer == 0 and "embed" in name)
            ),
            method="task_arithmetic",
            sources=("first", "second"),
            parameters={"weight": (weight, weight)},
            options={},
        )
        for layer, weight in enumerate(weights)
    )
    return Recipe(base=ModelRef("base", "none"), sources=tuple(EXPERTS), rules=rules, dtype="float32")


def weights_of(recipe):
    return [rule.parameters["weight"][0] for rule in recipe.rules]


@pytest.mark.parametrize("weights", [(0.9, 0.1, 0.7, 0.2), (1.9, 3.0, -1.0, 0.0), (50.0, 50.0, 50.0, 50.0)])
def test_no_line_over_depth_is_nearer_than_the_nearest(weights):
    space, luck = bound("task-arithmetic-lines"), random.Random(2)
    nearest = nearest_params(space, by_layers(weights))

    def error(params):
        return sum((a - b) ** 2 for a, b in zip(weights_of(space.decode(params)), weights, strict=True))

    for _ in range(300):
        other = {
            name: min(max(nearest[name] + luck.gauss(0, 0.2), distribution.low), distribution.high)
            for name, distribution in space.distributions.items()
        }
        assert error(nearest) <= error(other) + 1e-9


def test_control_points_that_no_value_decides_are_near_the_values_around():
    space = SearchSpace.model_validate(
        {
            "name": "many",
            "groups": {"depth": {"smooth": 7}},
            "methods": {"task_arithmetic": {"parameters": {"weight": {"low": 0.5, "high": 3.0, "shared": "sources"}}}},
        }
    )
    many = bind(space, build_catalogue(TENSORS), ModelRef("base", "none"), EXPERTS, dtype="float32", seed=1)
    params = nearest_params(many, by_layers((2.0, 1.0, 1.0, 2.0)))
    assert weights_of(many.decode(params)) == pytest.approx([2.0, 1.0, 1.0, 2.0])
    assert all(1.0 <= value <= 2.0 for value in params.values())
