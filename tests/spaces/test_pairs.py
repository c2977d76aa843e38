"""Layer-wise fusion in the language of spaces: one method for the parts of a block, and pairs of sources by scores."""

import math
from itertools import permutations

import pytest

from evomerge.catalogue import build_catalogue
from evomerge.errors import InvalidInput
from evomerge.genomes.pairs import chosen_pair, score_of
from evomerge.recipe import ModelRef
from evomerge.spaces import load_space
from evomerge.spaces.bound import bind
from evomerge.spaces.nearest import nearest_params

EXPERTS = [ModelRef(name, "none") for name in ("red", "green", "blue")]
TENSORS = {
    f"model.layers.{layer}.{module}.weight": ((4, 4), "float32")
    for layer in range(4)
    for module in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
} | {"model.embed_tokens.weight": ((8, 4), "float32"), "model.norm.weight": ((4,), "float32")}


def bound(path, experts=EXPERTS):
    return bind(load_space(str(path)), build_catalogue(TENSORS), ModelRef("base", "none"), experts, dtype="x", seed=1)


def written(tmp_path, methods, groups="{depth: {blocks: 2}, parts: [attention, mlp], one_method: true}"):
    path = tmp_path / "space.yaml"
    path.write_text(f"{{name: s, groups: {groups}, methods: {methods}}}", encoding="utf-8")
    return path


def test_the_parts_of_a_block_choose_one_method_and_have_its_parameters_each_for_itself():
    space = bound("lfs")
    methods = [name for name in space.distributions if name.endswith("method")]
    assert methods == ["layers0-1.method", "layers2-3.method"]
    params = {**space.centre, "layers0-1.method": "task_arithmetic"}
    weights = {
        f"layers0-1.{part}.task_arithmetic.weight": n / 10 for n, part in enumerate(("attention", "mlp", "rest"))
    }
    rules = space.decode({**params, **weights}).rules
    assert [(rule.method, rule.parameters.get("weight")) for rule in rules[:3]] == [
        ("task_arithmetic", (share, share, share)) for share in (0.0, 0.1, 0.2)
    ]
    assert {rule.method for rule in rules[3:]} == {"linear"}


def test_only_the_parameters_of_the_chosen_method_exist():
    space = bound("lfs")
    params = {**space.centre, "layers0-1.method": "ties"}
    active = [name for name in space.active(params) if name.startswith("layers0-1.") and not name.endswith("method")]
    assert active == [
        f"layers0-1.{part}.ties.{each}" for part in ("attention", "mlp", "rest") for each in ("density", "lambda")
    ]
    assert space.dimensions == 2 * (1 + 3 * (2 + 1 + 2 + 3))  # ratios, weight, density and lambda, scores
    assert space.active_dimensions == 2 * (1 + 3 * 3)  # of each group, the method and three scores a part


def scores_of(**parts):
    named = {
        f"layers0-1.{part}.slerp.{source}.score": score
        for part, scores in parts.items()
        for source, score in zip(("red", "green", "blue"), scores, strict=True)
    }
    return {"layers0-1.method": "slerp", **named}


def test_the_pair_of_all_parts_is_that_of_the_largest_sums_and_the_share_that_of_the_part():
    space = bound("lfs")
    params = space.centre | scores_of(attention=(0.9, 0.1, 0.4), mlp=(0.0, 0.2, 0.9), rest=(0.3, 0.1, 0.3))
    rules = space.decode(params).rules[:3]
    assert [rule.sources for rule in rules] == [("blue", "red")] * 3  # 1.6 and 1.2 against 0.4
    shares = [rule.parameters["t"] for rule in rules]
    expected = [math.exp(red) / (math.exp(red) + math.exp(blue)) for red, blue in ((0.9, 0.4), (0.0, 0.9), (0.3, 0.3))]
    assert shares == pytest.approx(expected)


def test_groups_that_choose_apart_have_pairs_of_their_own(tmp_path):
    space = bound(written(tmp_path, "{slerp: {parameters: {score: {low: 0, high: 2}}}}", "{depth: layers}"))
    params = space.centre | {"layer0.red.score": 2.0, "layer0.blue.score": 1.5, "layer1.green.score": 2.0}
    assert [rule.sources for rule in space.decode(params).rules[:3]] == [
        ("red", "blue"),
        ("green", "red"),
        ("red", "green"),
    ]


@pytest.mark.parametrize("experts", [EXPERTS, EXPERTS[:2]])
def test_a_pair_comes_back_as_scores(experts):
    space = bound("lfs", experts)
    for seed in range(5):
        params = space.centre | {
            name: (seed * 0.37 + place * 0.61) % 1.0 if ".score" in name else "slerp"
            for place, name in enumerate(space.distributions)
            if ".score" in name or name.endswith("method")
        }
        params = {name: params[name] for name in space.active(params)}
        recipe = space.decode(params)
        again = space.decode(nearest_params(space, recipe))
        assert [rule.sources for rule in again.rules] == [rule.sources for rule in recipe.rules]
        for rule, other in zip(recipe.rules, again.rules, strict=True):
            assert other.parameters["t"] == pytest.approx(rule.parameters["t"])


def test_a_source_outside_of_the_pair_has_the_lowest_score():
    assert score_of("c", ("a", "b"), 0.5, low=-1.0, high=3.0) == -1.0
    assert score_of("a", ("a", "b"), 0.0, low=-1.0, high=3.0) == 3.0


@pytest.mark.parametrize("pair", list(permutations(("a", "b", "c"), 2)))
@pytest.mark.parametrize("t", [0.0, 0.1, 0.25, 0.75, 1.0])
def test_a_pair_whose_share_the_range_is_too_short_for_stays_that_pair(pair, t):
    sources = ("a", "b", "c")
    scores = [score_of(source, pair, t, low=0.0, high=1.0) for source in sources]
    chosen, share = chosen_pair([scores, scores, scores], scores)
    assert [sources[place] for place in chosen] == list(pair if t < 0.5 else reversed(pair))
    assert share == pytest.approx(max(min(t, 1 - t), 1 / (1 + math.e)), abs=1e-6)


@pytest.mark.parametrize(
    ("methods", "groups", "says"),
    [
        ("{slerp: {parameters: {score: 0.5}}}", None, "score is searched"),
        ("{slerp: {parameters: {score: {low: 0, high: 1, shared: sources}}}}", None, "score is searched"),
        ("{slerp: {parameters: {score: {low: 0.1, high: 1, log: true}}}}", None, "only differences of scores"),
        ("{slerp: {parameters: {t: 0.5, score: {low: 0, high: 1}}}}", None, "either t or score"),
        ("{ot_fusion: {parameters: {score: {low: 0, high: 1}}}}", None, "unknown parameter of 'ot_fusion'"),
        ("{nearswap: {parameters: {score: {low: 0, high: 1}}}}", None, "unknown parameter of 'nearswap'"),
        ("{ties: {parameters: {score: {low: 0, high: 1}}}}", None, "unknown parameter of 'ties'"),
        ("{linear: {}}", "{depth: layers, one_method: true}", "name parts"),
    ],
)
def test_scores_that_mean_nothing_are_refused(tmp_path, methods, groups, says):
    with pytest.raises(InvalidInput, match=says):
        load_space(str(written(tmp_path, methods, groups or "{depth: layers}")))


def test_one_source_makes_no_pair(tmp_path):
    path = written(tmp_path, "{slerp: {parameters: {score: {low: 0, high: 1}}}}")
    with pytest.raises(InvalidInput, match="at least 2 sources, but the spec gives 1"):
        bound(path, EXPERTS[:1])


def test_a_space_without_the_key_does_not_mention_it():
    groups = load_space("ties-per-block").model_dump(mode="json")["groups"]
    assert "one_method" not in groups
    assert load_space("lfs").model_dump(mode="json")["groups"]["one_method"] is True
