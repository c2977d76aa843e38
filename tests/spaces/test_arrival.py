"""The order of arrival as params: every order is reached, comes back, and takes per-source values along."""

from __future__ import annotations

import itertools
import json

import pytest

from evomerge.catalogue import build_catalogue
from evomerge.errors import InvalidInput
from evomerge.genomes.arrival import arrival_order, key_params, keys_of
from evomerge.recipe import ModelRef
from evomerge.spaces import load_space
from evomerge.spaces.bound import bind
from evomerge.spaces.nearest import nearest_params
from evomerge.spaces.space import SearchSpace

NAMES = ("red", "green", "blue", "grey")


def space_of(tmp_path, methods, depth="global"):
    path = tmp_path / "space.yaml"
    path.write_text(json.dumps({"name": "own", "groups": {"depth": depth}, "methods": methods}))
    return load_space(str(path))


def bound(space):
    tensors = {f"model.layers.{layer}.mlp.up_proj.weight": ((4, 4), "float32") for layer in range(4)}
    experts = [ModelRef(name, "somewhere") for name in NAMES]
    return bind(space, build_catalogue(tensors), ModelRef("base", "somewhere"), experts, dtype="float32", seed=1)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_order_has_keys_inside_their_range(count):
    for order in itertools.permutations(NAMES[:count]):
        keys = keys_of("", NAMES[:count], order)
        assert arrival_order("", NAMES[:count], keys) == order
        assert len(keys) == count - 1
        assert all(-1 < value < 1 for value in keys.values())


def test_sources_arrive_by_their_keys_and_equal_keys_keep_the_order_of_the_spec():
    params = {"green.order": -0.5, "blue.order": 0.25, "grey.order": -0.5}
    assert arrival_order("", NAMES, params) == ("green", "grey", "red", "blue")
    assert arrival_order("", NAMES, dict.fromkeys(key_params("", NAMES).values(), 0.0)) == NAMES


def test_all_groups_have_one_order_and_a_recipe_gives_it_back(tmp_path):
    methods = {"opcm": {"order": "searched", "parameters": {"alpha": {"low": 0.0, "high": 0.9}}}}
    space = bound(space_of(tmp_path, methods, {"blocks": 2}))
    keys = ["green.order", "blue.order", "grey.order"]
    assert [param for param in space.distributions if param.endswith("order")] == keys
    assert space.decode(space.centre).rules[0].sources == NAMES
    for order in itertools.permutations(NAMES):
        recipe = space.decode({**space.centre, **keys_of("", NAMES, order)})
        assert {rule.sources for rule in recipe.rules} == {order}
        assert [source.name for source in recipe.sources] == list(NAMES)
        found = nearest_params(space, recipe)
        assert space.decode(found) == recipe
        assert list(found) == list(space.distributions)


def test_where_methods_are_chosen_the_keys_belong_to_theirs(tmp_path):
    opcm = {"order": "searched", "parameters": {"alpha": {"low": 0.0, "high": 0.9}}}
    linear = {"parameters": {"weight": {"log_ratio": 3}}}
    space = bound(space_of(tmp_path, {"opcm": opcm, "linear": linear}))
    keys = keys_of("opcm", NAMES, NAMES[::-1])
    assert set(keys) == {"opcm.green.order", "opcm.blue.order", "opcm.grey.order"} <= space.conditions.keys()
    params = {"method": "opcm", **keys, "opcm.alpha": 0.5}
    assert space.decode(params).rules[0].sources == NAMES[::-1]
    assert nearest_params(space, space.decode(params)) == pytest.approx(params)
    other = space.decode({"method": "linear", **{f"linear.{name}.log_ratio": 0.0 for name in NAMES[1:]}})
    assert other.rules[0].sources == NAMES


def test_an_order_is_for_methods_whose_sources_arrive(tmp_path):
    ties = {"ties": {"order": "searched", "parameters": {"lambda": {"low": 0.5, "high": 1.5}}}}
    with pytest.raises(InvalidInput, match="order: searched is for opcm"):
        space_of(tmp_path, ties)
    with pytest.raises(InvalidInput, match="order"):
        space_of(tmp_path, {"opcm": {"order": "random"}})


def test_a_space_without_an_order_is_stored_as_before():
    given = {"name": "own", "groups": {"depth": "global"}, "methods": {"opcm": {"parameters": {"alpha": 0.5}}}}
    stored = SearchSpace.model_validate(given).model_dump(mode="json", by_alias=True)
    assert "order" not in stored["methods"]["opcm"]
    searched = SearchSpace.model_validate({**given, "methods": {"opcm": {"order": "searched"}}})
    stored = searched.model_dump(mode="json", by_alias=True)
    assert stored["methods"]["opcm"]["order"] == "searched"
    assert SearchSpace.model_validate(stored) == searched
