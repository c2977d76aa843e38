"""Search spaces: YAML -> groups, distributions, centre, and params -> recipe."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from evomerge.catalogue import build_catalogue, part_of
from evomerge.documents import validate
from evomerge.errors import InvalidInput
from evomerge.methods import METHODS
from evomerge.recipe import ModelRef, Recipe
from evomerge.spaces import known_spaces, load_space
from evomerge.spaces.bound import bind
from evomerge.spaces.groups import divide
from evomerge.spaces.space import Groups
from evomerge.spaces.space_checks import needed_statistics

BASE = ModelRef("base", "somewhere", revision=None, fingerprint="f-base")
EXPERTS = [
    ModelRef(name, "somewhere", revision=None, fingerprint=f"f-{name}") for name in ("red", "green", "blue", "grey")
]


def catalogue(layers=6):
    modules = ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm"]
    names = [f"model.layers.{layer}.{module}.weight" for layer in range(layers) for module in modules]
    names += ["model.embed_tokens.weight", "model.norm.weight"]
    return build_catalogue(dict.fromkeys(names, ((4, 4), "bfloat16")))


def bound(name, experts=EXPERTS, layers=6):
    return bind(load_space(name), catalogue(layers), BASE, experts, dtype="float32", seed=3)


def write(tmp_path, text):
    path = tmp_path / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


EXPERTS_OF = {"slerp-per-layer": 2, "nearswap-global": 2, "nuslerp-global": 2, "ot-fusion": 1}


def space_for(name):
    return bound(name, experts=EXPERTS[: EXPERTS_OF.get(name, 4)])


# Spaces of other merges are tested in tests/recipe_spaces.
PLAIN = [name for name in known_spaces() if not load_space(name).takes_recipes]


@pytest.mark.parametrize("name", PLAIN)
def test_every_shipped_space_decodes_its_centre_to_a_recipe_of_every_tensor(name):
    space = space_for(name)
    recipe = space.decode(space.centre)
    tensors = [tensor for rule in recipe.rules for tensor in rule.tensors]
    inside = [name for name in catalogue().names if recipe.layers and catalogue()[name].layer is not None]
    assert sorted(tensors + inside) == sorted(catalogue().names)
    assert len(recipe.layers) == (catalogue().depth if inside else 0)
    assert space.is_complete(space.centre)
    assert Recipe.from_json(recipe.to_json()) == recipe


OURS = [name for name in PLAIN if load_space(name).genome is None]  # others have genes without effect, folds


@pytest.mark.parametrize("name", OURS)
def test_n22_different_params_give_different_recipes(name):
    space = space_for(name)
    digests = {space.decode(space.centre).digest}
    for param, value in space.centre.items():
        distribution = space.distributions[param]
        if isinstance(value, str):
            continue
        # A key of an order changes the recipe where it passes another one.
        end = distribution.low if param.endswith(".order") else distribution.high
        digests.add(space.decode({**space.centre, param: end}).digest)
    assert len(digests) == 1 + sum(not isinstance(value, str) for value in space.centre.values())


@pytest.mark.parametrize("name", OURS)
def test_the_ends_of_every_range_are_merges_without_folding_or_clamping(name):
    space = space_for(name)
    for param in space.centre:
        distribution = space.distributions[param]
        for end in getattr(distribution, "choices", None) or (distribution.low, distribution.high):
            params = {**space.centre, param: end}
            missing = [each for each in space.active(params) if each not in params]
            params |= {each: space.distributions[each].low for each in missing}
            assert space.decode(params).rules


def test_the_shipped_spaces_of_the_toy_scale_have_at_most_thirty_dimensions():
    spaces = [space for space in map(space_for, OURS) if not space.conditional and space.paths is None]
    sizes = {space.space.name: space.dimensions for space in spaces}
    assert sizes == {
        "breadcrumbs-global": 6,
        "breadcrumbs-ties-global": 6,
        "consensus-global": 5,
        "dare-ties-per-block": 18,
        "della-global": 6,
        "della-linear-global": 6,
        "fisher-global": 4,
        "iso-c": 1,
        "karcher-global": 3,
        "linear-global": 3,
        "multislerp-global": 3,
        "nearswap-global": 1,
        "nuslerp-global": 1,
        "opcm": 4,
        "ot-fusion": 3,
        "pcb-global": 4,
        "pcb-per-block": 12,
        "ram-plus-global": 2,
        "regmean-global": 4,
        "sce-global": 1,
        "slerp-per-layer": 6,
        "task-arithmetic-lines": 2,
        "task-arithmetic-per-block": 12,
        "ties-per-block": 15,
        "ties-smooth": 15,
        "tsv-m": 1,
        "wudi": 1,
    }


def test_the_centre_of_normalised_weights_is_the_uniform_average():
    space = bound("linear-global")
    assert space.decode(space.centre).rules[0].parameters["weight"] == (0.25,) * 4


def test_log_ratios_mean_the_weight_relative_to_the_first_source():
    space = bound("linear-global")
    weights = space.decode({**space.centre, "green.log_ratio": math.log(2)}).rules[0].parameters["weight"]
    assert weights == pytest.approx((0.2, 0.4, 0.2, 0.2))


def test_a_range_divided_by_sources_scales_with_their_number():
    assert bound("task-arithmetic-per-block").distributions["layers0-1.red.weight"].high == 1.0
    two = bound("task-arithmetic-per-block", EXPERTS[:2])
    assert two.distributions["layers0-1.red.weight"].high == 2.0


def test_smooth_depth_interpolates_between_control_points():
    space = bound("ties-smooth")
    params = {**space.centre, "point0.red.weight": 0.0, "point1.red.weight": 1.0, "point2.red.weight": 2.0}
    rules = {rule.tensors[-1]: rule for rule in space.decode(params).rules}
    weights = [rules[f"model.layers.{layer}.self_attn.q_proj.weight"].parameters["weight"][0] for layer in range(5)] + [
        rules["model.norm.weight"].parameters["weight"][0]
    ]
    assert weights == pytest.approx([0.0, 0.4, 0.8, 1.2, 1.6, 2.0])


def test_logarithmic_ranges_interpolate_logarithmically():
    space = bound("ties-smooth", layers=5)
    params = {**space.centre, "point0.density": 0.05, "point1.density": 0.8, "point2.density": 0.8}
    densities = [rule.parameters["density"][0] for rule in space.decode(params).rules]
    assert densities[:3] == pytest.approx([0.05, 0.2, 0.8])


def test_tensors_outside_the_layers_join_their_neighbours_or_stand_apart():
    near = divide(catalogue(), validate(Groups, {"depth": {"blocks": 3}}, "test"))
    assert [group.label for group in near] == ["layers0-2", "layers3-5"]
    assert "model.embed_tokens.weight" in near[0].tensors
    assert "model.norm.weight" in near[1].tensors
    apart = divide(catalogue(), validate(Groups, {"depth": {"blocks": 3}, "outside": "own"}, "test"))
    assert apart[-1].label == "outside"
    assert apart[-1].tensors == ("model.embed_tokens.weight", "model.norm.weight")
    first = divide(catalogue(), validate(Groups, {"depth": {"blocks": 3}, "outside": "first"}, "test"))
    assert [group.label for group in first] == ["layers0-2", "layers3-5"]
    assert {"model.embed_tokens.weight", "model.norm.weight"} < set(first[0].tensors)


def test_the_weights_of_task_arithmetic_lines_are_those_of_lines_layer_by_layer():
    space = bound("task-arithmetic-lines")
    alpha, beta = 0.1, 0.6
    recipe = space.decode({"point0.weight": alpha, "point1.weight": alpha + beta})
    weights = {name: rule.parameters["weight"] for rule in recipe.rules for name in rule.tensors}
    for layer in range(6):
        of_layer = weights[f"model.layers.{layer}.mlp.up_proj.weight"]
        assert of_layer == pytest.approx((alpha + beta * layer / 5,) * len(EXPERTS))
    for outside in ("model.embed_tokens.weight", "model.norm.weight"):
        assert weights[outside] == (alpha,) * len(EXPERTS)


def test_parts_divide_every_depth_group():
    groups = divide(catalogue(2), validate(Groups, {"depth": "layers", "parts": ["attention", "mlp"]}, "test"))
    assert [group.label for group in groups] == [
        f"layer{layer}.{part}" for layer in range(2) for part in ("attention", "mlp", "rest")
    ]


def test_a_choice_of_methods_has_only_the_parameters_of_the_chosen_one():
    space = bound("mixed-methods")
    params = {"layers0-1.method": "linear", "layers2-3.method": "ties", "layers4-5.method": "task_arithmetic"}
    active = [name for name in space.active(params) if not name.endswith("method")]
    assert len(active) == 3 + 5 + 4
    assert all(name.startswith(("layers0-1.linear", "layers2-3.ties", "layers4-5.task_arithmetic")) for name in active)
    assert space.conditional
    assert not space.is_complete(params)


def test_a_part_pattern_of_the_space_moves_tensors(tmp_path):
    name = write(
        tmp_path,
        "name: mine\ngroups: {depth: global, parts: [mlp]}\npart_patterns: {mlp: q_proj}\n"
        "methods: {task_arithmetic: {parameters: {weight: {low: 0, high: 1}}}}\n",
    )
    space = load_space(name)
    tensors = {entry.name: (entry.shape, entry.dtype) for entry in catalogue(1).entries}
    space_bound = bind(space, build_catalogue(tensors, patterns=space.patterns), BASE, EXPERTS, dtype="float32", seed=0)
    labels = {group.label: group.tensors for group in space_bound.groups}
    assert "model.layers.0.self_attn.q_proj.weight" in labels["mlp"]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.layers.0.linear_attn.in_proj_qkvz.weight", "attention"),
        ("model.layers.0.linear_attn.A_log", "attention"),
        ("model.layers.0.linear_attn.norm.weight", "norm"),
        ("model.layers.0.temporal_block.linear_x.weight", "attention"),
        ("model.layers.0.mixer.in_proj.weight", "attention"),
        ("model.layers.0.mamba.in_proj.weight", "attention"),
        ("model.layers.0.mamba.dt_layernorm.weight", "norm"),
        ("model.layers.0.conv.in_proj.weight", "attention"),
        ("model.layers.0.shared_mlp.input_linear.weight", "mlp"),
        ("model.layers.0.moe.router.weight", "mlp"),
        ("output.weight", "head"),
        ("model.layers.0.mlp.down_proj.weight", "mlp"),
    ],
)
def test_the_patterns_of_the_page_on_spaces_name_the_parts_of_hybrids(tmp_path, name, part):
    page = (Path(__file__).parents[2] / "docs" / "spaces.md").read_text(encoding="utf-8")
    block = next(each for each in page.split("```") if "part_patterns:" in each)
    assert part_of(name, load_space(write(tmp_path, block.removeprefix("yaml"))).patterns) == part


GOOD = "name: mine\ngroups: {depth: global}\nmethods: {task_arithmetic: {parameters: {weight: {low: 0, high: 1}}}}\n"
CHOSEN = "choices: [0.3, 0.6]"
CHOICES = GOOD.replace("low: 0, high: 1", CHOSEN)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD.replace("task_arithmetic", "task_aritmetic"), "did you mean 'task_arithmetic'"),
        (GOOD.replace("weight", "wieght"), "did you mean 'weight'"),
        (GOOD.replace("depth: global", "depth: {block: 2}"), "did you mean 'blocks'"),
        (GOOD.replace("low: 0, high: 1", "low: 1, high: 0"), "low < high must hold"),
        (GOOD.replace("low: 0, high: 1", "low: 0, high: .inf"), "weight.high"),
        (GOOD.replace("low: 0, high: 1", "low: 0, high: 1, log: true"), "must start above zero"),
        (GOOD.replace("low: 0, high: 1", "log_ratio: 3"), "divided by their sum"),
        (GOOD.replace("task_arithmetic", "linear"), "log_ratio"),
        (GOOD.replace("{low: 0, high: 1}", "0.3"), "nothing to search"),
        (GOOD + "colour: red\n", "key 'colour' does not exist"),
        (GOOD + "name: twice\n", "twice"),
        ("name: [unclosed\n", "not valid YAML"),
        ("- a list\n", "must hold 'key: value' pairs"),
        (GOOD.replace("task_arithmetic", "ties").replace("weight", "density").replace("high: 1", "high: 2"), "outside"),
        (
            "name: m\ngroups: {depth: {smooth: 2}}\nmethods:\n  ties: {parameters: {lambda: {low: 1, high: 2}}}\n"
            "  task_arithmetic: {parameters: {weight: {low: 0, high: 1}}}\n",
            "cannot be interpolated",
        ),
        (CHOICES.replace("global", "{smooth: 2}"), "choices of weight cannot be interpolated over depth"),
        (CHOICES.replace("6]", "6], shared: sources").replace("global", "{smooth: 2}"), "cannot be interpolated"),
        (CHOICES.replace("6]", "6], divided_by_sources: true"), "divided_by_sources is for low and high"),
        (
            GOOD.replace("task_arithmetic", "linear").replace(
                "low: 0, high: 1", "log_ratio: 3, divided_by_sources: true"
            ),
            "divided_by_sources is for low and high",
        ),
    ],
)
def test_a_bad_space_is_refused_in_one_line(tmp_path, text, says):
    with pytest.raises(InvalidInput, match=r"^[^\n]+$") as caught:
        bind(load_space(write(tmp_path, text)), catalogue(), BASE, EXPERTS, dtype="float32", seed=0)
    assert says in str(caught.value)


@pytest.mark.parametrize("shared", ["groups", "all"])
def test_choices_that_all_groups_share_need_no_interpolation(tmp_path, shared):
    text = CHOICES.replace("6]", f"6], shared: {shared}").replace("global", "{smooth: 2}")
    space = bind(load_space(write(tmp_path, text)), catalogue(), BASE, EXPERTS, dtype="float32", seed=0)
    recipe = space.decode(dict.fromkeys(space.distributions, 0.6))
    assert {rule.parameters["weight"] for rule in recipe.rules} == {(0.6,) * len(EXPERTS)}


def test_an_unknown_space_is_answered_with_the_nearest():
    with pytest.raises(InvalidInput, match="did you mean 'ties-smooth'"):
        load_space("ties-smoth")


def test_slerp_names_the_sources_that_are_too_many():
    with pytest.raises(InvalidInput, match=r"exactly 2 sources.*4 \(red, green, blue, grey\)"):
        bound("slerp-per-layer")


def test_floats_without_a_point_are_floats(tmp_path):
    space = load_space(write(tmp_path, GOOD.replace("low: 0", "low: 1e-3")))
    assert space.methods["task_arithmetic"].parameters["weight"].low == 0.001


def test_a_yaml_bomb_is_refused(tmp_path):
    levels = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    levels += [f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]" for n in range(14)]
    with pytest.raises(InvalidInput, match="aliases"):
        load_space(write(tmp_path, "\n".join(levels)))


def test_an_option_that_needs_statistics_cannot_be_searched(tmp_path):
    space = tmp_path / "aligned.yaml"
    text = "name: aligned\ngroups: {depth: global}\nmethods: {ot_fusion: {parameters: {t: {low: 0, high: 1}}"
    space.write_text(text + "}}\n")
    assert load_space(str(space)).methods.keys() == {"ot_fusion"}
    space.write_text(text + ", options: {mode: acts}}}\n")
    with pytest.raises(InvalidInput, match="under mode: acts it needs statistics"):
        load_space(str(space))


MIXED = """
name: mixed
groups: {depth: {blocks: 2}}
methods:
  linear: {parameters: {weight: {log_ratio: 3}}}
  regmean: {parameters: {weight: {log_ratio: 3}}, options: {bias: joint}}
"""


def test_a_space_says_which_statistics_its_methods_need_and_how_they_are_measured(tmp_path):
    assert needed_statistics(load_space("linear-global")) == {}
    assert needed_statistics(load_space("fisher-global")) == {"fisher": {}}
    assert needed_statistics(load_space("regmean-global")) == {"grams": {"constant": False}}
    assert needed_statistics(load_space(write(tmp_path, MIXED))) == {"grams": {"constant": True}}


def test_a_recipe_names_the_statistics_that_its_own_rules_take(tmp_path):
    files = {"grams.red": "0" * 64, "grams.green": "1" * 64, "fisher.red": "2" * 64}
    loaded = load_space(write(tmp_path, MIXED))
    space = replace(bind(loaded, catalogue(), BASE, EXPERTS[:2], dtype="float32", seed=3), files=files)
    assert space.decode(space.centre).files == {}
    knots = [param for param in space.centre if param.endswith("method")]
    for chosen in knots:
        params = {**space.centre, chosen: "regmean"}
        params |= {each: 0.0 for each in space.active(params) if each not in params}
        recipe = space.decode(params)
        assert recipe.files == {"grams.red": "0" * 64, "grams.green": "1" * 64}
        other = replace(space, files=files | {"grams.red": "3" * 64}).decode(params)
        assert other.digest != recipe.digest


def test_weights_of_which_only_the_ratios_matter_are_searched_as_ratios(tmp_path):
    text = "name: mine\ngroups: {depth: global}\nmethods: {fisher: {parameters: {weight: {low: 0.1, high: 1.0}}}}\n"
    with pytest.raises(InvalidInput, match="log_ratio: 3"):
        load_space(write(tmp_path, text))


def test_two_methods_that_need_one_kind_in_different_ways_are_refused(tmp_path, monkeypatch):
    other = replace(METHODS["regmean"], name="other")
    monkeypatch.setitem(METHODS, "other", other)
    text = MIXED + "  other: {parameters: {weight: {log_ratio: 3}}, options: {bias: mean}}\n"
    with pytest.raises(InvalidInput, match="grams that are measured in different ways"):
        load_space(write(tmp_path, text))


def test_of_a_choice_the_value_with_most_params_counts():
    space = bound("mixed-methods")
    longest = max(
        sum(1 for _ in space.active({name: method for name in space.distributions if name.endswith("method")}))
        for method in space.space.methods
    )
    assert space.active_dimensions == longest < space.dimensions
    assert bound("ties-per-block").active_dimensions == bound("ties-per-block").dimensions
