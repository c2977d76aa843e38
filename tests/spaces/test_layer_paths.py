"""Layer paths as a search space: params to recipes and back, the budget of depth, and what is refused."""

import itertools
import json
import random
from pathlib import Path

import pytest
import yaml

from evomerge.catalogue import build_catalogue
from evomerge.errors import InvalidInput
from evomerge.recipe import ModelRef, PathLayer, Recipe, single_source
from evomerge.samplers import build_sampler
from evomerge.spaces import SearchSpace, load_space
from evomerge.spaces.bound import bind
from evomerge.spaces.nearest import nearest_params
from evomerge.spec import spec_from_json

MLP = ("gate_proj", "up_proj", "down_proj")
TENSORS = {f"model.layers.{layer}.mlp.{module}.weight": ((4, 4), "float32") for layer in range(4) for module in MLP}
TENSORS |= {f"model.{name}.weight": ((4, 4), "float32") for name in ("embed_tokens", "norm")}
TENSORS["lm_head.weight"] = ((4, 4), "float32")
BASE = ModelRef("base", "none")
EXPERTS = [ModelRef("a", "none"), ModelRef("b", "none")]


def bound(*, catalogue=None, experts=EXPERTS, sources="experts", **layers):
    space = SearchSpace.model_validate({"name": "paths", "layers": layers, "sources": sources})
    return bind(space, catalogue or build_catalogue(TENSORS), BASE, experts, dtype="float32", seed=1)


def own(source, layers=range(4)):
    return tuple(PathLayer(source, layer, 1.0) for layer in layers)


def test_a_search_starts_with_the_own_stack_of_every_source():
    space = bound(sources="all")
    assert [space.decode(start).layers for start in space.initial] == [own("base"), own("a"), own("b")]
    assert space.centre == space.initial[0]


def test_what_is_outside_of_layers_comes_from_the_ends_of_the_path():
    space = bound()
    path = (*own("b", [0, 1]), *own("a", [2, 3]))
    recipe = space.decode(
        nearest_params(space, Recipe(base=BASE, sources=tuple(EXPERTS), rules=(), dtype="float32", layers=path))
    )
    rules = {name: rule.sources for rule in recipe.rules for name in rule.tensors}
    assert rules == {
        "model.embed_tokens.weight": ("b",),
        "model.norm.weight": ("a",),
        "lm_head.weight": ("a",),
    }


def test_the_base_at_an_end_needs_no_rule_since_it_is_what_is_copied_anyway():
    space = bound(sources="all")
    assert space.decode(space.initial[0]).rules == ()


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("sources", ["experts", "all"])
def test_a_path_of_the_space_comes_back(sources, scale):
    space, luck = bound(sources=sources, scale=scale, max_layers=8, fix_layers=1), random.Random(1)
    found = 0
    for _ in range(60):
        params = {}
        for param, distribution in space.distributions.items():
            choices = getattr(distribution, "choices", None)
            params[param] = luck.choice(choices) if choices else luck.uniform(distribution.low, distribution.high)
        recipe = space.decode(params)
        assert Recipe.from_json(recipe.to_json()) == recipe
        if space.infeasible(recipe) is None:
            found += 1
            assert space.decode(nearest_params(space, recipe)) == recipe
    assert found > 5


def test_a_whole_source_is_its_own_stack():
    space = bound()
    recipe = single_source(BASE, EXPERTS[1], tuple(TENSORS), "float32")
    assert nearest_params(space, recipe) == space.initial[1]


def test_merges_have_no_place_among_paths_nor_paths_among_merges():
    space = bound()
    recipe = space.decode(space.centre)
    merges = load_space("task-arithmetic-per-block", Path())
    other = bind(merges, build_catalogue(TENSORS), BASE, EXPERTS, dtype="float32", seed=1)
    assert nearest_params(other, recipe) is None
    assert nearest_params(space, other.decode(other.centre)) is None


@pytest.mark.parametrize(
    "path",
    [
        own("a", [0, 2, 1, 3]),  # positions in another order
        own("a", [0, 1, 3]),  # a position without layers
        (*own("a"), PathLayer("a", 3, 1.0)),  # a block twice
        (PathLayer("a", 0, 2.5), *own("a", [1, 2, 3])),  # a scale out of its range
    ],
)
def test_a_path_that_the_genome_does_not_have_has_no_params(path):
    recipe = Recipe(base=BASE, sources=tuple(EXPERTS), rules=(), dtype="float32", layers=path)
    assert nearest_params(bound(), recipe) is None


def test_a_proposal_over_the_budget_is_infeasible_by_so_many_layers_and_a_recipe_given_by_hand_is_refused():
    space = bound(max_layers=5)
    everything = {name: "1" if name.endswith("_selection") and "block" in name else "0" for name in space.distributions}
    everything |= {name: 1.0 for name in space.distributions if name.startswith("scale_")}
    recipe = space.decode(everything)
    infeasible = space.infeasible(recipe)
    assert (len(recipe.layers), infeasible.excess) == (8, 3)
    assert infeasible.reason == "the path has 8 layers, and max_layers of the space allows 5"
    assert space.infeasible(space.decode(space.centre)) is None
    with pytest.raises(InvalidInput, match="8 layers, and max_layers of the space allows 5"):
        nearest_params(space, recipe)


@pytest.mark.parametrize("layers", [{"max_layers": 5}, {"max_layers": 4, "fix_layers": 1}, {"max_layers": 8}])
def test_the_share_of_paths_within_the_budget_is_that_of_all_genomes(layers):
    space = bound(scale=False, **layers)
    bits = [name for name in space.distributions if "block" in name]
    lengths = []
    for values in itertools.product("01", repeat=len(bits)):
        lengths.append(len(space.decode({**space.centre, **dict(zip(bits, values, strict=True))}).layers))
    share = sum(length <= layers["max_layers"] for length in lengths) / len(lengths)
    assert space.paths.share_within_budget() == pytest.approx(share)


def test_without_a_budget_a_path_may_have_a_quarter_more_layers():
    assert bound().paths.max_layers == 5


def test_the_factor_of_an_mlp_is_no_gene_where_it_is_switched_off():
    assert not [name for name in bound(scale=False).distributions if name.startswith("scale_")]
    assert len(bound().distributions) == 4 * (2 + 2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_layers": 3}, "the sources themselves have 4"),
        ({"granularity": 3}, "cannot be divided"),
        ({"fix_layers": 2}, "leave 0"),
        ({"experts": [ModelRef(name, "none") for name in "abcdefg"]}, "5040 orders"),
    ],
)
def test_a_space_that_does_not_fit_the_model_is_refused(settings, words):
    with pytest.raises(InvalidInput, match=words):
        bound(**settings)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"model.norm.weight": ((4,), "float32")}, "no tensor name has a layer number"),
        ({"model.layers.0.mlp.weight": ((4, 4), "float32")}, "no output projection"),
        (
            TENSORS | {"model.layers.0.post_feedforward_layernorm.weight": ((4,), "float32")},
            r"normalises what the MLP .* \(scale: false\)",
        ),
        (TENSORS | {"model.layers.1.mlp.experts.up": ((2, 4, 4), "float32")}, "several in one"),
    ],
)
def test_a_model_whose_layers_or_mlps_are_unknown_is_refused(tensors, words):
    with pytest.raises(InvalidInput, match=words):
        bound(catalogue=build_catalogue(tensors))


def test_cma_is_refused_with_the_samplers_that_can_search_it():
    with pytest.raises(InvalidInput, match="use the sampler catcma or tpe"):
        build_sampler("cma", {}, seed=1, space=bound(), workers=1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "give methods, at least one, and groups; or a genome; or layers"),
        ({"methods": {"ties": {}}}, "give methods, at least one, and groups; or a genome; or layers"),
        ({"layers": {}, "groups": {"depth": "global"}}, "have no meaning beside"),
        ({"layers": {}, "methods": {"ties": {}}}, "have no meaning beside"),
        ({"layers": {"granularity": 0}}, "granularity"),
        ({"layers": {"max_layer": 5}}, "max_layer"),
    ],
)
def test_a_file_has_merges_or_paths(tmp_path, content, words):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", **content}), encoding="utf-8")
    with pytest.raises(InvalidInput, match=words):
        load_space(str(path))


def test_a_stored_spec_has_the_kind_of_space_that_it_was_given_and_nothing_of_the_other():
    for name, fields in (("layer-path", {"layers"}), ("ties-smooth", {"methods", "groups", "semantics"})):
        space = load_space(name)
        content = space.model_dump(mode="json", by_alias=True)
        assert {"layers", "methods", "groups", "semantics"} & content.keys() == fields
        document = {"name": "x", "sources": {"base": "x", "a": "y"}, "evaluator": "synthetic", "space": content}
        assert spec_from_json(json.dumps(document)).search_space == space
