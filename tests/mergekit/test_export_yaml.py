from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import yaml

from evomerge.catalogue import TensorCatalogue, build_catalogue
from evomerge.mergekit.export_yaml import to_mergekit
from evomerge.mergekit.parameter_settings import evaluate, position
from evomerge.methods import MERGEKIT_SEMANTICS, METHODS, resolve_options
from evomerge.recipe import ModelRef, Recipe, Rule

SUFFIXES = ("input_layernorm", "mlp.down_proj", "mlp.up_proj", "self_attn.o_proj", "self_attn.q_proj")
CATALOGUE = build_catalogue(
    {f"model.layers.{layer}.{suffix}.weight": ((4, 4), "float32") for layer in range(4) for suffix in SUFFIXES}
    | dict.fromkeys(("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"), ((4, 4), "float32"))
)
BASE = ModelRef("base", "org/base")
EXPERTS = (ModelRef("math", "org/math", revision="v2"), ModelRef("code", "/models/code"))
ALL = CATALOGUE.names


def _recipe(*rules: Rule) -> Recipe:
    return Recipe(base=BASE, sources=EXPERTS, rules=rules, dtype="bfloat16", seed=7)


def _rule(
    method: str, tensors: tuple[str, ...] = ALL, options: dict[str, Any] | None = None, **parameters: Any
) -> Rule:
    if "lambda_" in parameters:
        parameters["lambda"] = parameters.pop("lambda_")
    chosen = resolve_options(method, options or {}) if method in METHODS else {}
    return Rule(tensors=tensors, method=method, sources=("math", "code"), parameters=parameters, options=chosen)


def _content(recipe: Recipe, catalogue: TensorCatalogue = CATALOGUE) -> dict[str, Any]:
    text, reason = to_mergekit(recipe, catalogue)
    assert text is not None, reason
    assert reason == ""
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def _reason(recipe: Recipe) -> str:
    text, reason = to_mergekit(recipe, CATALOGUE)
    assert text is None
    return reason


def test_a_linear_merge() -> None:
    assert _content(_recipe(_rule("linear", weight=(0.3, 0.7)))) == {
        "merge_method": "linear",
        "models": [
            {"model": "org/math@v2", "parameters": {"weight": 0.3}},
            {"model": "/models/code", "parameters": {"weight": 0.7}},
        ],
        "parameters": {"normalize": True},
        "dtype": "float32",
        "out_dtype": "bfloat16",
        "tokenizer_source": "org/base",
    }


def test_the_base_gives_its_tokenizer_as_base_model_and_else_a_comment_says_what_is_cut() -> None:
    values: dict[str, Any] = {"weight": (0.3, 0.7)}
    for method, base_model in (("task_arithmetic", "org/base"), ("linear", None)):
        text, _ = to_mergekit(_recipe(_rule(method, **values)), CATALOGUE)
        assert text is not None
        content = yaml.safe_load(text)
        assert content.get("base_model") == base_model
        assert ("tokenizer_source" in content) == ("rows than tokens" in text) == (base_model is None)


def test_an_adapter_is_named_with_the_base_that_it_is_of() -> None:
    text, _ = to_mergekit(_recipe(_rule("linear", weight=(0.3, 0.7))), CATALOGUE, adapters={"math"})
    assert text is not None
    assert text.startswith("# Models with adapters: mergekit needs --lora-merge-cache FOLDER")
    assert [each["model"] for each in yaml.safe_load(text)["models"]] == ["org/base+org/math@v2", "/models/code"]


@pytest.mark.parametrize("location", ["/models/c++/code", "/models/code@home"])
def test_a_place_that_mergekit_would_divide_cannot_be_written(location: str) -> None:
    recipe = replace(_recipe(_rule("slerp", t=0.5)), sources=(EXPERTS[0], ModelRef("code", location)))
    assert f"in {location} for " in _reason(recipe)


def test_slerp_starts_at_its_first_source() -> None:
    content = _content(_recipe(_rule("slerp", t=0.25)))
    assert content["base_model"] == "org/math@v2"
    assert content["parameters"] == {"t": 0.25}
    assert content["models"] == [{"model": "org/math@v2"}, {"model": "/models/code"}]


def test_task_arithmetic_is_not_normalised() -> None:
    content = _content(_recipe(_rule("task_arithmetic", weight=(0.5, -0.1))))
    assert content["base_model"] == "org/base"
    assert content["parameters"] == {"normalize": False}


def test_ties_with_mergekits_semantics_needs_no_caveat() -> None:
    rule = _rule("ties", options=dict(MERGEKIT_SEMANTICS["ties"]), density=(0.2, 0.4), weight=(1.0, 0.5), lambda_=0.9)
    text, _ = to_mergekit(_recipe(rule), CATALOGUE)
    assert text is not None
    assert "WILL differ" not in text
    content = yaml.safe_load(text)
    assert content["parameters"] == {"lambda": 0.9, "normalize": True}
    assert content["models"][0]["parameters"] == {"density": 0.2, "weight": 1.0}


def test_ties_with_other_semantics_says_which() -> None:
    rule = _rule("ties", options={"trim_scope": "layer_group"}, density=(0.2, 0.4), weight=(1.0, 1.0), lambda_=1.0)
    text, _ = to_mergekit(_recipe(rule), CATALOGUE)
    assert text is not None
    assert "WILL differ" in text
    assert "#   trim_scope: layer_group here, tensor in mergekit" in text
    assert "#   weighting: count here, norm in mergekit" in text


def test_what_a_recipe_from_before_an_option_means_is_named_too() -> None:
    rule = _rule("sce", options={"semantics": "mergekit"}, select_topk=0.5)
    text, _ = to_mergekit(_recipe(rule), CATALOGUE)
    assert text is not None
    assert "WILL differ" not in text
    older = {name: value for name, value in rule.options.items() if name != "small_energy"}
    text, _ = to_mergekit(_recipe(replace(rule, options=older)), CATALOGUE)
    assert text is not None
    assert "#   small_energy: shares here, equal in mergekit" in text


def test_the_density_of_dare_is_what_is_not_dropped() -> None:
    text, _ = to_mergekit(_recipe(_rule("dare_linear", drop_rate=(0.75, 0.5), weight=(1.0, 1.0))), CATALOGUE)
    assert text is not None
    assert [model["parameters"]["density"] for model in yaml.safe_load(text)["models"]] == [0.25, 0.5]
    assert "random masks of its own" in text


def test_dare_ties_is_expressible_where_nothing_is_trimmed_again() -> None:
    values: dict[str, Any] = {"drop_rate": (0.5, 0.5), "weight": (1.0, 1.0), "lambda_": 1.0}
    assert "does not trim" in _reason(_recipe(_rule("dare_ties", density=(0.5, 1.0), **values)))
    assert _content(_recipe(_rule("dare_ties", density=(1.0, 1.0), **values)))["merge_method"] == "dare_ties"
    free = _rule("dare_ties", options={"dare_ties": "no_trim", "rescale": "none"}, density=(0.5, 0.5), **values)
    assert _content(_recipe(free))["parameters"]["rescale"] is False


def test_a_method_on_task_vectors_names_the_base_and_one_on_the_sources_does_not() -> None:
    for method in ("multislerp", "nuslerp"):
        sources = _content(_recipe(_rule(method, weight=(0.5, 0.5))))
        vectors = _content(_recipe(_rule(method, options={"vectors": "task_vectors"}, weight=(0.5, 0.5))))
        assert "base_model" not in sources
        assert vectors["base_model"] == "org/base"


def test_nuslerp_says_what_has_an_angle_of_its_own() -> None:
    switches = {
        units: _content(_recipe(_rule("nuslerp", options={"units": units}, weight=(0.5, 0.5))))["parameters"]
        for units in ("tensor", "rows", "columns")
    }
    assert switches == {
        "tensor": {"nuslerp_flatten": True, "nuslerp_row_wise": False},
        "rows": {"nuslerp_flatten": False, "nuslerp_row_wise": False},
        "columns": {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    }


def test_a_karcher_mean_is_expressible_where_all_weigh_alike() -> None:
    assert _content(_recipe(_rule("karcher", weight=(0.5, 0.5))))["merge_method"] == "karcher"
    assert "same weight" in _reason(_recipe(_rule("karcher", weight=(0.5, 0.6))))


def test_breadcrumbs_are_never_normalised_and_their_election_as_the_recipe_says() -> None:
    values: dict[str, Any] = {"density": (0.5, 0.5), "gamma": (0.01, 0.02), "weight": (1.0, 1.0), "lambda_": 1.5}
    content = _content(_recipe(_rule("breadcrumbs", **values)))
    assert content["parameters"] == {"lambda": 1.5, "normalize": False}
    assert content["models"][1]["parameters"] == {"density": 0.5, "gamma": 0.02, "weight": 1.0}
    elected = _content(_recipe(_rule("breadcrumbs_ties", options={"weighting": "norm"}, **values)))
    assert elected["parameters"] == {"lambda": 1.5, "normalize": True}


def test_the_spread_of_della_is_its_epsilon_as_a_share_of_what_the_density_allows() -> None:
    rule = _rule("della", density=(0.2, 0.75), spread=(0.5, 1.0), weight=(1.0, 1.0), lambda_=1.0)
    content = _content(_recipe(rule))
    assert [model["parameters"]["epsilon"] for model in content["models"]] == [0.1, 0.25]
    assert content["parameters"] == {"lambda": 1.0, "normalize": True, "rescale": True}
    given: dict[str, Any] = {"density": (0.2, 0.2), "spread": (0.5, 0.5), "weight": (1.0, 1.0), "lambda_": 1.0}
    linear = _rule("della_linear", options={"rescale": "none"}, **given)
    assert _content(_recipe(linear))["parameters"] == {"lambda": 1.0, "normalize": False, "rescale": False}


def _value(name: str) -> float:
    """A number of its own for each layer and part."""
    entry = CATALOGUE[name]
    return 0.01 * (ord(entry.part[0]) - 90) + (0 if entry.layer is None else 0.1 * (entry.layer + 1))


def test_rules_by_layer_and_part_become_gradients_and_filters() -> None:
    rules = [
        _rule("linear", tuple(n for n in ALL if _value(n) == value), weight=(value, 1 - value))
        for value in sorted({_value(name) for name in ALL})
    ]
    setting = _content(_recipe(*rules))["models"][0]["parameters"]["weight"]
    for name in ALL:
        assert evaluate(setting, name, position(CATALOGUE, name)) == pytest.approx(_value(name))
    assert {condition.get("filter") for condition in setting} >= {"model.norm.weight", "lm_head.weight", None}


def test_rules_that_split_a_module_are_told_by_the_whole_name() -> None:
    split = tuple(name for name in ALL if "q_proj" in name)
    rest = tuple(name for name in ALL if "q_proj" not in name)
    setting = _content(_recipe(_rule("slerp", split, t=0.9), _rule("slerp", rest, t=0.1)))["parameters"]["t"]
    assert all(evaluate(setting, name, Fraction(0)) == (0.9 if name in split else 0.1) for name in ALL)


def test_filters_that_would_also_fit_other_tensors_are_noticed() -> None:
    catalogue = build_catalogue(dict.fromkeys(("norm.weight", "prenorm.weight"), ((1,), "float32")))
    rules = [_rule("slerp", (name,), t=t) for name, t in (("norm.weight", 0.1), ("prenorm.weight", 0.2))]
    text, reason = to_mergekit(_recipe(*rules), catalogue)
    assert text is None
    assert "cannot tell prenorm.weight from other tensors" in reason


def test_integer_buffers_need_no_rule() -> None:
    catalogue = build_catalogue({"a.weight": ((1,), "float32"), "steps": ((1,), "int64")})
    assert _content(_recipe(_rule("slerp", ("a.weight",), t=0.5)), catalogue)["merge_method"] == "slerp"


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ([], "this recipe has 0"),
        ([_rule("linear", ALL[:3], weight=(1.0, 1.0)), _rule("slerp", ALL[3:], t=0.5)], "this recipe has 2"),
        ([_rule("column_linear")], "no counterpart of the method column_linear"),
        ([_rule("slerp", ALL[:3], t=0.5)], "the recipe copies 20 tensors from the base"),
        (
            [
                _rule("slerp", ALL[:3], t=0.5),
                Rule(
                    tensors=ALL[3:],
                    method="slerp",
                    sources=("code", "math"),
                    parameters={"t": 0.5},
                    options={"multi_model": "reject"},
                ),
            ],
            "different sources",
        ),
        (
            [
                _rule("linear", ALL[:3], weight=(1.0, 1.0)),
                _rule("linear", ALL[3:], {"normalize": False}, weight=(1.0, 1.0)),
            ],
            "different options",
        ),
    ],
)
def test_what_mergekit_cannot_say_comes_with_a_reason(rules: list[Rule], reason: str) -> None:
    assert reason in _reason(_recipe(*rules))


def _nested(*labels: str, **ingredients: Recipe) -> Recipe:
    rule = Rule(
        tensors=ALL,
        method="task_arithmetic",
        sources=labels,
        parameters={"weight": tuple(0.5 for _ in labels)},
        options=resolve_options("task_arithmetic", {}),
    )
    return replace(_recipe(rule), ingredients=ingredients)


def test_a_merge_of_merges_is_one_document_for_each_as_mergekit_multi_takes_them() -> None:
    soup, ties = _recipe(_rule("linear", weight=(0.3, 0.7))), _recipe(_rule("slerp", t=0.25))
    unused = _recipe(_rule("linear", weight=(0.1, 0.9)))
    inner = _nested("soup", "math", soup=soup)
    text, reason = to_mergekit(
        _nested("inner", "mixed", "again", inner=inner, mixed=ties, again=soup, x=unused), CATALOGUE
    )
    assert text is not None, reason
    assert text.startswith("# Several merges")
    documents = list(yaml.safe_load_all(text))
    assert [document.pop("name", None) for document in documents] == [
        "merge-1-again",
        "merge-2-inner",
        "merge-3-mixed",
        None,
    ]
    assert documents[0] == _content(soup)
    assert documents[2] == _content(ties)
    assert [model["model"] for model in documents[1]["models"]] == ["merge-1-again", "org/math@v2"]
    assert [model["model"] for model in documents[3]["models"]] == ["merge-2-inner", "merge-3-mixed", "merge-1-again"]
    assert [document.get("tokenizer_source") for document in documents] == ["org/base", None, "org/base", None]


def test_a_merge_of_a_merge_that_mergekit_cannot_make_says_of_which() -> None:
    trained = _recipe(_rule("column_linear", phi="identity"))
    assert _reason(_nested("trained", "math", trained=trained)).startswith("its ingredient 'trained': mergekit has no")
