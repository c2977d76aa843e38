"""Genomes of other searches as search spaces: recipes are what the contract's functions decode, tensor by tensor."""

import json
import random

import pytest
import torch
from optuna.distributions import CategoricalDistribution

from evomerge.catalogue import build_catalogue
from evomerge.errors import InvalidInput, MergeError
from evomerge.merging import merge_state_dicts
from evomerge.recipe import ModelRef, Recipe, Rule
from evomerge.spaces import load_space
from evomerge.spaces.bound import bind
from evomerge.spaces.evolutionary import evo_decode, evo_initial
from evomerge.spaces.lfs import lfs_decode, lfs_distributions, lfs_initial
from evomerge.spaces.nearest import nearest_params
from evomerge.spaces.space import SearchSpace

BASE = ModelRef("base", "none")
NAMES = ["red", "green", "blue"]
EXPERTS = [ModelRef(name, "none") for name in NAMES]
MODULES = {"self_attn.q_proj": "self_attn", "mlp.up_proj": "mlp", "input_layernorm": "base"}
OUTSIDE = {"model.embed_tokens.weight": 0, "model.norm.weight": -1, "lm_head.weight": -1}  # group that they join
TENSORS = {
    **{f"model.layers.{layer}.{module}.weight": ((4, 4), "float32") for layer in range(4) for module in MODULES},
    **dict.fromkeys(OUTSIDE, ((8, 4), "float32")),
}
LFS = "{lfs: {granularity: 2, filters: [self_attn, mlp], options: {ties: {kept_rule: mask_rate}}}}"


def bound(tmp_path, genome, experts=EXPERTS, tensors=TENSORS, more=""):
    path = tmp_path / "space.yaml"
    path.write_text(f"{{name: s, genome: {genome}{more}}}", encoding="utf-8")
    return bind(load_space(str(path)), build_catalogue(tensors), BASE, experts, dtype="float32", seed=1)


def drawn(space, seed):
    luck = random.Random(seed)
    return {
        gene: luck.choice(each.choices)
        if isinstance(each, CategoricalDistribution)
        else luck.uniform(each.low, each.high)
        for gene, each in space.distributions.items()
    }


def place(name, size):
    """(group of layers, part) of a tensor, by the authors' rule."""
    if name in OUTSIDE:
        return OUTSIDE[name], "base"
    _, _, layer, module = name.split(".", 3)
    return int(layer) // size, MODULES[module.removesuffix(".weight")]


def test_the_genes_of_the_lfs_space_are_the_authors_and_their_design_comes_first(tmp_path):
    space = bound(tmp_path, LFS)
    arguments = (NAMES, 4, 2, ["self_attn", "mlp"])
    assert list(space.distributions.items()) == list(lfs_distributions(*arguments).items())
    assert list(space.initial) == lfs_initial(*arguments)
    assert not space.conditional
    uniform = space.decode(space.centre).rules
    assert {(rule.method, rule.parameters["weight"]) for rule in uniform} == {("linear", (0.5, 0.5, 0.5))}


@pytest.mark.parametrize("seed", range(6))
def test_every_tensor_is_merged_as_lfs_decode_says(tmp_path, seed):
    space = bound(tmp_path, LFS)
    params = drawn(space, seed)
    groups = lfs_decode(params, NAMES, 4, 2, ["self_attn", "mlp"])
    rules = {tensor: rule for rule in space.decode(params).rules for tensor in rule.tensors}
    assert sorted(rules) == sorted(TENSORS)
    for name, rule in rules.items():
        number, part = place(name, 2)
        group = groups[number]
        assert (rule.method, list(rule.sources)) == (group.method, group.sources)
        for parameter, value in group.parameters[part].items():
            if (group.method, parameter) in {("task_arithmetic", "weight"), ("ties", "density")}:
                value = [value] * 3  # the authors have one number for all sources
            assert rule.parameters[parameter] == (tuple(value) if isinstance(value, list) else value)
        if group.method == "ties":
            assert rule.parameters["weight"] == (1.0,) * 3
            assert (rule.options["kept_rule"], rule.options["trim_scope"]) == ("mask_rate", "layer_group")


def test_the_shipped_space_has_the_authors_ties():
    space = bind(load_space("lfs-flat"), build_catalogue(TENSORS), BASE, EXPERTS, dtype="float32", seed=1)
    params = space.centre | {"layer_selection_method_0": "ties"}
    (options,) = {json.dumps(rule.options) for rule in space.decode(params).rules if rule.method == "ties"}
    wanted = {"trim_scope": "tensor", "kept_rule": "mask_rate", "agg": "dis-mean"}
    assert wanted.items() <= json.loads(options).items()


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
@pytest.mark.parametrize("seed", range(2))
def test_every_tensor_is_merged_as_evo_decode_says(tmp_path, method, seed):
    space = bound(tmp_path, f"{{evolutionary: {{method: {method}, layer_granularity: 2, filters: [self_attn, mlp]}}}}")
    arguments = (method, NAMES, 4, 2, ["self_attn", "mlp"])
    assert list(space.centre.values()) == evo_initial(*arguments)
    assert space.initial == (space.centre,)
    params = drawn(space, seed)
    groups = evo_decode(list(params.values()), *arguments)
    for rule in space.decode(params).rules:
        for name in rule.tensors:
            number, part = place(name, 2)
            expected = {key: tuple(values) for key, values in groups[number].parameters[part].items()}
            assert expected.items() <= dict(rule.parameters).items()


def test_one_group_of_the_evolutionary_genome_holds_the_whole_model(tmp_path):
    space = bound(tmp_path, "{evolutionary: {method: slerp}}")
    assert list(space.distributions) == [f"group0.{name}.base.score" for name in NAMES]
    (rule,) = space.decode(
        {"group0.red.base.score": 0.1, "group0.green.base.score": 1.5, "group0.blue.base.score": 0.1}
    ).rules
    assert (rule.sources, len(rule.tensors)) == (("green", "red"), len(TENSORS))
    assert rule.parameters["t"] == pytest.approx(1 / (1 + 2.718281828459045**1.4))


def test_the_density_of_dare_is_what_it_does_not_drop(tmp_path):
    space = bound(tmp_path, "{evolutionary: {method: dare_ties}}", more=", semantics: mergekit")
    params = {gene: -0.25 if gene.endswith("density") else -0.5 for gene in space.distributions}
    (rule,) = space.decode(params).rules
    assert rule.parameters["drop_rate"] == (0.75,) * 3
    assert rule.parameters["weight"] == (0.5,) * 3
    assert rule.parameters["density"] == (1.0,) * 3
    assert rule.options["rescale"] == "l1_match"


def test_smooth_values_run_from_the_first_control_point_to_the_last(tmp_path):
    space = bound(tmp_path, "{evolutionary: {method: linear, layer_granularity: 2, smooth: true}}")
    params = {gene: 0.4 if gene.startswith("point0") else -1.0 for gene in space.distributions}
    weights = {rule.tensors: rule.parameters["weight"][0] for rule in space.decode(params).rules}
    by_layer = [
        next(w for names, w in weights.items() if f"model.layers.{n}.mlp.up_proj.weight" in names) for n in range(4)
    ]
    assert by_layer == pytest.approx([0.4, 0.6, 0.8, 1.0])
    assert nearest_params(space, space.decode(params)) is None


GENOMES = [
    LFS,
    *(f"{{evolutionary: {{method: {each}, layer_granularity: 4}}}}" for each in ("linear", "dare_ties", "slerp")),
]


@pytest.mark.parametrize("genome", GENOMES)
def test_a_recipe_of_the_genome_comes_back(tmp_path, genome):
    space = bound(tmp_path, genome)
    for seed in range(4):
        recipe = space.decode(drawn(space, seed))
        genes = nearest_params(space, recipe)
        assert list(genes) == list(space.distributions)
        for rule, other in zip(recipe.rules, space.decode(genes).rules, strict=True):
            assert (rule.method, rule.tensors, rule.options) == (other.method, other.tensors, other.options)
            if rule.method != "slerp" or rule.parameters["t"] < 0.499:
                assert rule.sources == other.sources
                for parameter, value in rule.parameters.items():
                    assert other.parameters[parameter] == pytest.approx(value)


def whole(method, sources, parameters):
    rule = Rule(tensors=tuple(sorted(TENSORS)), method=method, sources=sources, parameters=parameters)
    return Recipe(base=BASE, sources=tuple(EXPERTS), rules=(rule,), dtype="float32")


def test_a_soup_of_two_is_a_place_of_the_lfs_space_and_a_dare_merge_is_none(tmp_path):
    space = bound(tmp_path, LFS)
    genes = nearest_params(space, whole("linear", ("blue", "red"), {"weight": (3.0, 1.0)}))
    rule = space.decode(genes).rules[0]
    assert rule.parameters["weight"] == pytest.approx((1 / 3, 0.0, 1.0))
    assert nearest_params(space, whole("dare_linear", ("red",), {"weight": (1.0,), "drop_rate": (0.1,)})) is None
    assert nearest_params(space, whole("linear", ("base",), {"weight": (1.0,)})) is None


def test_trained_coefficients_are_averages_by_their_mean(tmp_path):
    space = bound(tmp_path, LFS)
    recipe = whole("column_linear", tuple(NAMES), {})
    genes = nearest_params(space, recipe, {name: {"red": 0.6, "green": 0.3, "blue": 0.0} for name in TENSORS})
    assert {rule.parameters["weight"] for rule in space.decode(genes).rules} == {(0.6, 0.3, 0.0)}
    assert nearest_params(space, recipe) is None


def test_a_genome_without_any_weight_is_a_candidate_that_fails_and_no_end_of_the_search(tmp_path):
    space = bound(tmp_path, LFS)
    rule = space.decode({gene: 0.0 if "weights" in gene else value for gene, value in space.centre.items()}).rules[0]
    sources = [{"w": torch.ones(2)}] * 3
    with pytest.raises(MergeError, match="cannot be divided by their sum"):
        merge_state_dicts(rule.method, sources, parameters={"weight": list(rule.parameters["weight"])})


def test_a_stored_space_is_the_same_space(tmp_path):
    space = bound(tmp_path, LFS).space
    content = space.model_dump(mode="json", by_alias=True)
    assert not {"methods", "groups"} & set(content)
    assert SearchSpace.model_validate(content) == space
    assert "genome" not in load_space("ties-per-block").model_dump(mode="json")
    assert space.method_names == ("linear", "task_arithmetic", "ties", "slerp")


@pytest.mark.parametrize(
    ("genome", "more", "says"),
    [
        ("{lfs: {granularity: 3}}", "", "use one of 1, 2, 4"),
        ("{lfs: {granularity: 2, filters: [experts]}}", "", "the filter 'experts' is in no tensor name"),
        ("{lfs: {granularity: 2, filters: [mlp, up_proj]}}", "", "the filter 'up_proj' is in no tensor name"),
        ("{lfs: {granularity: 2, filters: [mlp, mlp]}}", "", "must differ"),
        ("{lfs: {granularity: 2, filters: [base]}}", "", "give the filter another name"),
        ("{lfs: {granularity: 0}}", "", "genome.lfs.granularity"),
        ("{lfs: {granularity: 2, filter: [mlp]}}", "", "did you mean 'filters'"),
        ("{lfs: {granularity: 2, options: {dare: {}}}}", "", "options are for linear"),
        ("{lfs: {granularity: 2, options: {ties: {agg: sum}}}}", "", "option 'agg'"),
        ("{lfs: {granularity: 2}}", ", groups: {depth: global}", "leave groups out"),
        ("{}", "", "name one genome"),
        ("{lfs: {granularity: 2}, evolutionary: {method: ties}}", "", "name one genome"),
        ("{evolutionary: {method: tis}}", "", "method is one of linear"),
        ("{evolutionary: {method: slerp, smooth: true}}", "", "cannot be smooth"),
        ("{evolutionary: {method: slerp, filters: [mlp]}}", "", "no filters"),
        ("{evolutionary: {method: linear, allow_negative_weights: true}}", "", "no weights below 0"),
        ("{evolutionary: {method: ties, layer_granularity: 3}}", "", "use one of 1, 2, 4"),
    ],
)
def test_a_genome_that_does_not_fit_is_refused_in_one_line(tmp_path, genome, more, says):
    with pytest.raises(InvalidInput, match=r"^[^\n]+$") as caught:
        bound(tmp_path, genome, more=more)
    assert says in str(caught.value)


def test_a_genome_needs_layers_and_two_sources(tmp_path):
    with pytest.raises(InvalidInput, match="no tensor name has a layer number"):
        bound(tmp_path, LFS, tensors={"weight": ((4, 4), "float32")})
    with pytest.raises(InvalidInput, match="sources needs 2 or more names"):
        bound(tmp_path, LFS, experts=EXPERTS[:1])
