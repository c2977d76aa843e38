"""Files of mergekit's as recipes, and the recipes that can be written read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.catalogue import build_catalogue
from evomerge.errors import InvalidInput
from evomerge.mergekit.export_yaml import to_mergekit
from evomerge.mergekit.import_yaml import ImportedMerge, import_merge, real_models
from evomerge.mergekit.merge_file import read_merge_file
from evomerge.methods import METHODS, resolve_options, resolve_parameters
from evomerge.recipe import ModelRef, PathLayer, Recipe, Rule, copying_rule

SUFFIXES = ("input_layernorm", "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "self_attn.o_proj", "self_attn.q_proj")
DEPTH = 7  # of which a sixth is no binary fraction
OUTSIDE = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
CATALOGUE = build_catalogue(
    {f"model.layers.{layer}.{suffix}.weight": ((4, 4), "bfloat16") for layer in range(DEPTH) for suffix in SUFFIXES}
    | dict.fromkeys(OUTSIDE, ((4, 4), "bfloat16"))
)
BASE = ModelRef("base", "org/base")
MATH, CODE = ModelRef("math", "org/math", revision="v2"), ModelRef("code", "/models/code")
REFS = {"org/base": BASE, "org/math@v2": MATH, "/models/code": CODE}
ALL = CATALOGUE.names
READ = sorted(name for name, info in METHODS.items() if info.mergekit is not None)


def _read(content: str | dict[str, Any], tmp_path: Path, refs: dict[str, ModelRef] | None = None) -> ImportedMerge:
    path = tmp_path / "merge.yml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    documents = read_merge_file(path)
    found = refs or {model: REFS.get(model, ModelRef(model, model)) for model in real_models(documents)}
    return import_merge(documents, found, CATALOGUE)


def _refusal(content: str | dict[str, Any], tmp_path: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        _read(content, tmp_path)
    return str(caught.value)


def _values(recipe: Recipe, parameter: str) -> dict[str, Any]:
    return {name: rule.parameters[parameter] for rule in recipe.rules for name in rule.tensors}


def _recipe(*rules: Rule, **content: Any) -> Recipe:
    return Recipe(base=BASE, sources=(MATH, CODE), rules=rules, dtype="bfloat16", **content)


def _rule(method: str, tensors: tuple[str, ...], place: float) -> Rule:
    """A rule that mergekit can express, with parameters that depend on a place."""
    info = METHODS[method]
    sources = ("math", "code")[: info.sources or 2]
    untold = {missing.name: missing.neutral or 0.5 for missing in info.mergekit.missing} if info.mergekit else {}
    untold |= {"weight": 1.0} if method == "karcher" else {}
    names = [parameter.name for parameter in info.per_source]
    given = {name: tuple(round(0.1 + 0.13 * each + place / 3, 4) for each in range(len(sources))) for name in names}
    given |= {parameter.name: parameter.default * round((1 + place) / 2, 4) for parameter in info.shared}
    parameters = resolve_parameters(method, given | untold, len(sources))
    options = resolve_options(method, {}, semantics="mergekit")
    return Rule(tensors=tensors, method=method, sources=sources, parameters=parameters, options=options)


@pytest.mark.parametrize("method", READ)
def test_a_merge_with_one_value_for_all_tensors_is_read_back(method: str, tmp_path: Path) -> None:
    recipe = _recipe(_rule(method, ALL, 0.5))
    text, reason = to_mergekit(recipe, CATALOGUE)
    assert text is not None, reason
    assert _read(text, tmp_path, REFS).recipe.digest == recipe.digest


@pytest.mark.parametrize("method", READ)
def test_values_by_layer_module_and_tensor_are_read_back_to_the_last_bit(method: str, tmp_path: Path) -> None:
    if not METHODS[method].parameters or method == "karcher":
        groups = {0.5: list(ALL)}
    else:
        groups = {}
        for name in ALL:
            layer = CATALOGUE[name].layer
            place = 0.9 if layer is None else (layer + 1) / 9.7 + 0.01 * ("mlp" in name) + 0.02 * ("q_proj" in name)
            groups.setdefault(place, []).append(name)
    recipe = _recipe(*(_rule(method, tuple(names), place) for place, names in groups.items()))
    text, reason = to_mergekit(recipe, CATALOGUE)
    assert text is not None, reason
    found = _read(text, tmp_path, REFS).recipe
    assert [rule.tensors for rule in found.rules] == [rule.tensors for rule in recipe.rules]
    assert found.digest == recipe.digest


def test_a_share_that_is_dropped_is_read_as_somebody_would_write_it(tmp_path: Path) -> None:
    rule = _rule("dare_linear", ALL, 0.0)
    recipe = _recipe(Rule(**{**vars(rule), "parameters": {"drop_rate": (0.1, 0.7), "weight": (0.3, 1.0)}}))
    text, _ = to_mergekit(recipe, CATALOGUE)
    assert text is not None
    assert _read(text, tmp_path, REFS).recipe.digest == recipe.digest


@pytest.mark.parametrize("units", ["tensor", "rows", "columns"])
@pytest.mark.parametrize("vectors", ["sources", "task_vectors"])
def test_switches_and_a_base_model_choose_the_options_of_nuslerp(units: str, vectors: str, tmp_path: Path) -> None:
    rule = _rule("nuslerp", ALL, 0.5)
    options = resolve_options("nuslerp", {"units": units, "vectors": vectors})
    recipe = _recipe(Rule(**{**vars(rule), "options": options}))
    text, _ = to_mergekit(recipe, CATALOGUE)
    assert text is not None
    assert _read(text, tmp_path, REFS).recipe.digest == recipe.digest


@pytest.mark.parametrize(("method", "option"), [("ties", "weighting"), ("linear", "normalize"), ("della", "rescale")])
def test_a_switch_is_read_back_on_and_off(method: str, option: str, tmp_path: Path) -> None:
    for value in METHODS[method].mergekit.expressed[option]:
        rule = _rule(method, ALL, 0.5)
        recipe = _recipe(Rule(**{**vars(rule), "options": {**rule.options, option: value}}))
        text, _ = to_mergekit(recipe, CATALOGUE)
        assert text is not None
        assert _read(text, tmp_path, REFS).recipe.digest == recipe.digest


@pytest.mark.parametrize("method", ["linear", "karcher", "multislerp", "nuslerp", "slerp"])
def test_a_merge_of_which_the_base_is_a_source_is_read_back(method: str, tmp_path: Path) -> None:
    recipe = _recipe(Rule(**{**vars(_rule(method, ALL, 0.5)), "sources": ("base", "code")}))
    text, reason = to_mergekit(recipe, CATALOGUE)
    assert text is not None, reason
    content = yaml.safe_load(text)
    assert ("tokenizer_source" in content) == ("base_model" not in content) == (method in ("multislerp", "nuslerp"))
    assert _read(text, tmp_path).recipe.rules == recipe.rules


def test_a_switch_with_several_values_has_steps_and_nothing_between_them(tmp_path: Path) -> None:
    models = [{"model": model, "parameters": {"weight": 1.0}} for model in ("org/math@v2", "/models/code")]
    content = {
        "merge_method": "ties",
        "base_model": "org/base",
        "models": models,
        "parameters": {"density": 0.5, "normalize": [False, True, False]},
        "dtype": "float32",
    }
    rules = _read(content, tmp_path).recipe.rules
    found = {name: rule.options["weighting"] for rule in rules for name in rule.tensors}
    by_layer = [found[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in range(DEPTH)]
    assert by_layer == [*["sum"] * 3, *["norm"] * 3, "sum"]
    content["parameters"]["normalize"] = [0, 0.5]
    assert "line 12: `normalize` is true or false, not 0.5" in _refusal(content, tmp_path)


def test_a_path_of_layers_is_read_back(tmp_path: Path) -> None:
    layers = (
        PathLayer("math", 0, 1.0),
        PathLayer("code", 1, 0.8),
        PathLayer("code", 2, 1.0),
        PathLayer("code", 2, 1.0),
    )
    behind = tuple(name for name in ALL if name in OUTSIDE[1:])
    recipe = _recipe(copying_rule("math", OUTSIDE[:1]), copying_rule("code", behind), layers=layers)
    text, reason = to_mergekit(recipe, CATALOGUE)
    assert text is not None, reason
    assert _read(text, tmp_path, REFS).recipe.digest == recipe.digest


def test_a_merge_of_merges_is_read_back(tmp_path: Path) -> None:
    soup = _recipe(_rule("linear", ALL, 0.5))
    rule = Rule(**{**vars(_rule("ties", ALL, 0.5)), "sources": ("soup", "code")})
    recipe = _recipe(rule, ingredients={"soup": soup})
    text, reason = to_mergekit(recipe, CATALOGUE)
    assert text is not None, reason
    assert _read(text, tmp_path, REFS).recipe.digest == recipe.digest


STAGES = """\
name: first-merge
merge_method: linear
models:
  - model: org/math@v2
  - model: org/other
parameters:
  weight: 0.5
dtype: bfloat16
---
name: second-merge
merge_method: slerp
base_model: first-merge
models:
  - model: /models/code
parameters:
  t: 0.5
dtype: float32
---
merge_method: dare_ties
base_model: org/base
models:
  - model: second-merge
    parameters: {density: 0.6, weight: 0.5}
  - model: /models/code
    parameters: {density: 0.8, weight: 0.5}
dtype: float32
"""


def test_stages_of_several_documents_are_merges_of_merges_with_the_base_of_the_last_one(tmp_path: Path) -> None:
    recipe = _read(STAGES, tmp_path).recipe
    second = recipe.ingredients["second-merge"]
    first = second.ingredients["first-merge"]
    assert recipe.base == second.base == first.base == BASE
    assert recipe.rules[0].sources == ("second-merge", "code")
    assert second.rules[0].sources == ("first-merge", "code")
    assert [each.dtype for each in (recipe, second, first)] == ["float32", "float32", "bfloat16"]
    reason = "line 12: first-merge is a merge of this file, and the base has to be a model"
    assert reason in _refusal(STAGES.replace("slerp", "ties").replace("  t: 0.5", "  weight: 0.5"), tmp_path)


SLERP = """\
slices:
  - sources:
      - model: org/math@v2
        layer_range: [0, 7]
      - model: org/base
        layer_range: [0, 7]
merge_method: slerp
base_model: org/base
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
dtype: bfloat16
"""


def test_a_slerp_by_slices_begins_at_the_base_model_and_interpolates_its_gradients(tmp_path: Path) -> None:
    found = _read(SLERP, tmp_path)
    assert {rule.sources for rule in found.recipe.rules} == {("base", "math")}
    values = _values(found.recipe, "t")
    assert values["model.layers.0.self_attn.q_proj.weight"] == 0
    assert values["model.layers.1.self_attn.q_proj.weight"] == pytest.approx(0.5 * 4 / 6)
    assert values["model.layers.3.self_attn.q_proj.weight"] == 0.3
    assert values["model.layers.6.mlp.up_proj.weight"] == 0
    assert values["model.layers.6.input_layernorm.weight"] == values["lm_head.weight"] == 0.5
    assert found.notes == ("line 16: mergekit adds in bfloat16, evomerge in float32, rounding once to bfloat16",)


def test_outside_of_the_layers_a_gradient_has_its_first_value(tmp_path: Path) -> None:
    content = {
        "merge_method": "passthrough",
        "models": [{"model": "org/base", "parameters": {"scale": [1.0, 2.0]}}],
        "dtype": "float32",
    }
    values = _values(_read(content, tmp_path).recipe, "scale")
    assert [values[name] for name in OUTSIDE] == [(1.0,), (1.0,), (1.0,)]


def test_behind_the_layers_values_are_the_first_ones_of_the_last_slice(tmp_path: Path) -> None:
    def source(first: int, last: int, weights: list[float]) -> dict[str, Any]:
        own = {"model": "org/base", "layer_range": [first, last], "parameters": {"weight": weights}}
        return {"sources": [own]}

    content = {
        "merge_method": "linear",
        "slices": [source(0, 1, [3.0, 4.0]), source(1, 7, [1.0, 2.0])],
        "parameters": {"normalize": False},
        "dtype": "float32",
    }
    values = _values(_read(content, tmp_path).recipe, "weight")
    assert [values[name] for name in OUTSIDE] == [(3.0,), (1.0,), (1.0,)]
    layers = [values[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in (0, 1, 6)]
    assert layers == [(4.0,), (1.0,), (2.0,)]  # a slice of one layer has the last value


def test_parameters_of_a_slice_win_over_those_of_the_merge_and_those_of_a_model_over_both(tmp_path: Path) -> None:
    half = [{"model": "org/math@v2", "layer_range": [0, 3]}, {"model": "/models/code", "layer_range": [0, 3]}]
    rest = [{**each, "layer_range": [3, 7]} for each in half]
    half[0]["parameters"] = {"weight": [{"filter": "mlp", "value": 3.0}]}
    content = {
        "merge_method": "task_arithmetic",
        "base_model": "org/base",
        "slices": [{"sources": half, "parameters": {"weight": 2.0}}, {"sources": rest}],
        "parameters": {"weight": 1.0},
        "dtype": "float32",
    }
    values = _values(_read(content, tmp_path).recipe, "weight")
    assert values["model.layers.2.mlp.up_proj.weight"] == (3.0, 2.0)
    assert values["model.layers.2.self_attn.q_proj.weight"] == (2.0, 2.0)
    assert values["model.layers.3.mlp.up_proj.weight"] == (1.0, 1.0)


TIES = """\
models:
  - model: org/base
    # no parameters necessary for the base
  - model: org/math@v2
    parameters:
      density: [1, 0.7, 0.1]
      weight: 1.0
      lambda: 0.5
  - model: /models/code
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1]
      gamma: 0.01
merge_method: ties
base_model: org/base
parameters:
  int8_mask: true
dtype: float32
out_dtype: bfloat16
tokenizer_source: base
"""


def test_what_makes_no_difference_is_said_with_its_line_and_the_base_is_no_source_of_task_vectors(
    tmp_path: Path,
) -> None:
    found = _read(TIES, tmp_path)
    assert {rule.sources for rule in found.recipe.rules} == {("math", "code")}
    assert found.recipe.base == BASE
    assert found.recipe.dtype == "bfloat16"
    assert {rule.parameters["lambda"] for rule in found.recipe.rules} == {1.0}
    assert {rule.options["weighting"] for rule in found.recipe.rules} == {"norm"}
    assert found.notes == (
        "line 17: `int8_mask` saves memory in mergekit and changes nothing; ignored",
        "line 8: `lambda` is read of the whole merge, not of one model; ignored",
        "line 13: ties reads no `gamma`; ignored",
    )


def test_the_lambda_of_task_arithmetic_is_in_its_weights(tmp_path: Path) -> None:
    content = yaml.safe_load(TIES) | {"merge_method": "task_arithmetic", "parameters": {"lambda": 0.5}}
    values = _values(_read(content, tmp_path).recipe, "weight")
    assert values["lm_head.weight"] == (0.5, 0.0)
    content["parameters"]["normalize"] = True
    recipe = _read(content, tmp_path).recipe
    assert _values(recipe, "weight")["model.layers.6.mlp.up_proj.weight"] == (0.25, 0.25)
    assert {rule.options["normalize"] for rule in recipe.rules} == {False}


@pytest.mark.parametrize("method", ["breadcrumbs", "della_linear"])
def test_methods_that_do_not_divide_by_the_sum_of_the_weights_have_it_in_lambda(method: str, tmp_path: Path) -> None:
    models = [{"model": model, "parameters": {"weight": 2.0}} for model in ("org/math@v2", "/models/code")]
    content = {
        "merge_method": method,
        "base_model": "org/base",
        "models": models,
        "parameters": {"density": 0.5, "normalize": True, "lambda": 0.6},
        "dtype": "float32",
    }
    (rule,) = _read(content, tmp_path).recipe.rules
    assert (rule.parameters["lambda"], rule.parameters["weight"]) == (pytest.approx(0.15), (2.0, 2.0))


@pytest.mark.parametrize("method", ["linear", "karcher"])
def test_a_base_model_that_is_not_among_the_models_is_averaged_with_them(method: str, tmp_path: Path) -> None:
    content = {
        "merge_method": method,
        "base_model": "org/base",
        "models": [{"model": "org/math@v2"}, {"model": "/models/code"}],
        "parameters": {"weight": 0.5} if method == "linear" else {},
        "dtype": "float32",
    }
    (rule,) = _read(content, tmp_path).recipe.rules
    assert rule.sources == ("math", "code", "base")


@pytest.mark.parametrize("method", ["linear", "karcher"])
def test_a_base_model_that_is_not_among_the_sources_of_slices_is_not_averaged(method: str, tmp_path: Path) -> None:
    parts = ([0, 3], [3, 7])
    slices = [
        {"sources": [{"model": model, "layer_range": part} for model in ("org/math@v2", "/models/code")]}
        for part in parts
    ]
    content = {
        "merge_method": method,
        "base_model": "org/base",
        "slices": slices,
        "parameters": {"weight": 0.5} if method == "linear" else {},
        "dtype": "float32",
    }
    recipe = _read(content, tmp_path).recipe
    assert recipe.base == BASE
    assert {rule.sources for rule in recipe.rules} == {("math", "code")}


@pytest.mark.parametrize("order", [1, -1])
def test_models_that_mergekit_leaves_out_behind_the_layers_are_said_to_be_merged(order: int, tmp_path: Path) -> None:
    sizes = (1, 2)[::order]
    slices = [
        {"sources": [{"model": model, "layer_range": part} for model in ("org/math@v2", "/models/code")[:size]]}
        for part, size in zip(([0, 3], [3, 7]), sizes, strict=True)
    ]
    content = {"merge_method": "karcher", "base_model": "org/base", "slices": slices, "dtype": "float32"}
    found = _read(content, tmp_path)
    sources = {name: rule.sources for rule in found.recipe.rules for name in rule.tensors}
    assert len(sources["lm_head.weight"]) == sizes[-1]
    said = "behind the layers mergekit merges 1 model of this slice, as many as the first slice has"
    assert any(said in note for note in found.notes) == (sizes == (1, 2))


def test_mergekit_may_compute_in_64_bits(tmp_path: Path) -> None:
    found = _read(TIES.replace("dtype: float32\nout", "dtype: float64\nout"), tmp_path)
    assert found.recipe.dtype == "bfloat16"
    assert "line 18: mergekit adds in float64, evomerge in float32, rounding once to bfloat16" in found.notes


def test_della_is_normalised_unless_it_says_otherwise(tmp_path: Path) -> None:
    (rule,) = _read(
        TIES.replace("ties", "della").replace("[1, 0.7, 0.1]", "0.4").replace("[0, 0.3, 0.7, 1]", "1"), tmp_path
    ).recipe.rules
    assert rule.options["weighting"] == "norm"


def test_what_mergekit_calls_row_wise_has_an_angle_for_each_column(tmp_path: Path) -> None:
    for rows, units in ((True, "columns"), (False, "rows")):
        content = {
            "merge_method": "nuslerp",
            "models": [{"model": "org/math@v2"}, {"model": "/models/code"}],
            "parameters": {"weight": 0.5, "nuslerp_flatten": False, "nuslerp_row_wise": rows},
            "dtype": "float32",
        }
        (rule,) = _read(content, tmp_path).recipe.rules
        assert rule.options["units"] == units


def test_a_tokenizer_of_another_model_brings_its_config_with_it(tmp_path: Path) -> None:
    content = {
        "merge_method": "linear",
        "models": [{"model": "org/math@v2", "parameters": {"weight": 1}}],
        "dtype": "float32",
        "tokenizer_source": "org/base",
    }
    found = _read(content, tmp_path)
    assert found.recipe.base == BASE
    assert found.recipe.sources == (MATH,)
    assert "config and tokenizer are org/base's; mergekit has the config of org/math@v2" in found.notes[0]


def test_random_masks_are_said_to_be_others(tmp_path: Path) -> None:
    found = _read(TIES.replace("ties", "dare_ties"), tmp_path)
    assert "line 14: mergekit draws random masks of its own; evomerge's are a function of the seed" in found.notes
    assert {rule.options["rescale"] for rule in found.recipe.rules} == {"l1_match"}


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("merge_method: ties", "merge_method: cabs", "line 14: the method 'cabs' has no counterpart"),
        ("weight: 1.0", "weigth: 1.0", "line 7: ties has no parameter `weigth`; did you mean 'weight'?"),
        ("weight: 1.0", "weight: heavy", "line 7: weight: a value is a number, or a list of numbers"),
        ("weight: 1.0", "density: 0.1", "key 'density' twice"),
        ("      weight: 1.0\n", "", "line 4: `weight` of org/math@v2 is missing"),
        ("density: 0.5", "density: 1.5", "density = 1.5 is outside of what the method allows"),
        ("int8_mask: true", "rescale: true", "line 17: `rescale` of ties can only be false here"),
        ("tokenizer_source: base", "tokenizer_source: union", "line 20: a union of vocabularies is not built here"),
        ("tokenizer_source: base", "tokenizer_source: org/math@v2", "line 20: config and tokenizer are the base's"),
        ("tokenizer_source: base", "tokenizer: {}", "line 20: a union of vocabularies is not built here"),
        ("tokenizer_source: base", "tokenizer: {tokens: {}}", "line 20: a union of vocabularies is not built here"),
        ("tokenizer_source: base", "tokenizer: {source: org/math@v2}", "line 20: config and tokenizer are the base's"),
        ("tokenizer_source: base", "chat_template: chatml", "line 20: `chat_template` has no counterpart here"),
        ("tokenizer_source: base", "tokenizer: {source: base, tokens: {a: b}}", "line 20: `tokens` changes"),
        ("dtype: float32\nout_dtype: bfloat16", "dtype: float64", "line 18: weights in float64 are not written"),
        (
            "model: /models/code",
            "model: /models/code+adapter",
            "line 9: /models/code+adapter is a model with an adapter",
        ),
        (
            "model: /models/code",
            "model: /models/code+org/adapter",
            "line 9: /models/code+org/adapter is a model with an adapter",
        ),
        ("base_model: org/base", "base_model: org/base+tuned", "line 15: org/base+tuned is a model with an adapter"),
        ("model: /models/code", "model: org/base+one+two", "line 9: a model is MODEL, or BASE+ADAPTER"),
        ("base_model: org/base\n", "", "ties needs a `base_model`"),
        ("models:", "modells:", "did you mean 'models'?"),
    ],
)
def test_what_no_recipe_says_is_refused_with_line_and_reason(old: str, new: str, reason: str, tmp_path: Path) -> None:
    assert old in TIES
    assert reason in _refusal(TIES.replace(old, new), tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("[0, 7]", "[1, 7]", "line 2: layers are merged in their own places only, here from layer 0"),
        ("[0, 7]", "[0, 6]", "line 2: the models have 7 layers, the slices 6"),
        ("[0, 7]", "[0]", "line 4: `layer_range` is [first, last + 1], but is [0]"),
        ("slerp", "passthrough", "line 2: passthrough takes layers of one model a slice"),
        ("base_model: org/base", "base_model: /models/code", "slerp merges exactly 2 sources, but got 3"),
        ("model: org/base", "model: org/math@v2", "line 5: org/math@v2 is there twice"),
    ],
)
def test_slices_that_no_recipe_says_are_refused_with_line_and_reason(
    old: str, new: str, reason: str, tmp_path: Path
) -> None:
    assert reason in _refusal(SLERP.replace(old, new), tmp_path)


def test_a_scale_of_other_tensors_than_the_outputs_of_mlps_is_refused(tmp_path: Path) -> None:
    source = {"model": "org/base", "layer_range": [0, 7], "parameters": {"scale": [{"filter": "o_proj", "value": 0.0}]}}
    content = {"merge_method": "passthrough", "slices": [{"sources": [source]}], "dtype": "float32"}
    assert "scales model.layers.0.self_attn.o_proj.weight" in _refusal(content, tmp_path)


def test_rows_without_a_token_that_a_tokenizer_source_would_cut_are_said_to_stay(tmp_path: Path) -> None:
    cut = "line 20: mergekit makes embeddings with one row for each token here; evomerge keeps the 28 rows"
    for content, noted in ((TIES, True), (TIES.replace("tokenizer_source: base\n", ""), False)):
        path = tmp_path / "merge.yml"
        path.write_text(content)
        documents = read_merge_file(path)
        refs = {model: REFS[model] for model in real_models(documents)}
        notes = import_merge(documents, refs, CATALOGUE, spare_rows=28).notes
        assert any(cut in note for note in notes) == noted


ADAPTERS = """\
merge_method: linear
models:
  - model: org/base+/adapters/one
  - model: org/base+org/two@v2
parameters: {weight: 0.5}
dtype: float32
"""


def test_an_adapter_is_a_source_by_itself_and_the_model_under_it_the_base(tmp_path: Path) -> None:
    found = _read(ADAPTERS, tmp_path)
    assert found.recipe.base.location == "org/base"
    assert found.recipe.rules[0].sources == ("org/base+/adapters/one", "org/base+org/two@v2")
    (note,) = found.notes
    assert note.startswith("line 3: mergekit adds adapters to the base in bfloat16, unless")
    assert _read(ADAPTERS + "tokenizer_source: base\n", tmp_path).notes == found.notes
    assert "here adapters are those of the base, org/math@v2" in _refusal(
        ADAPTERS.replace("org/base+/adapters/one", "org/math@v2"), tmp_path
    )


def test_without_a_dtype_the_result_has_that_of_the_base(tmp_path: Path) -> None:
    content = yaml.safe_load(TIES)
    del content["dtype"], content["out_dtype"]
    found = _read(content, tmp_path)
    assert found.recipe.dtype == "bfloat16"
    assert "line 1: no `dtype`, so the result is in that of the base, bfloat16" in found.notes


@pytest.mark.parametrize("out_dtype", [None, "bfloat16", "float32"])
def test_without_a_dtype_mergekit_is_said_to_add_in_that_of_the_models(out_dtype: str | None, tmp_path: Path) -> None:
    content = {key: value for key, value in yaml.safe_load(TIES).items() if key not in ("dtype", "out_dtype")}
    found = _read(content | ({"out_dtype": out_dtype} if out_dtype else {}), tmp_path)
    assert (
        "line 1: without `dtype` mergekit adds in that of the models, which is bfloat16 in the base; "
        f"evomerge in float32, rounding once to {out_dtype or 'bfloat16'}"
    ) in found.notes
