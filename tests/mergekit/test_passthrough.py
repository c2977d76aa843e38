"""Layer paths as mergekit's slices."""

from dataclasses import replace

import pytest
import yaml

from evomerge.catalogue import build_catalogue
from evomerge.mergekit.export_yaml import to_mergekit
from evomerge.recipe import ModelRef, PathLayer, Recipe, copying_rule

MODULES = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "self_attn.q_proj")
TENSORS = {f"model.layers.{at}.{module}.weight": ((4, 4), "float32") for at in range(3) for module in MODULES}
TENSORS |= dict.fromkeys(("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"), ((4, 4), "float32"))
A, B = ModelRef("a", "models/a"), ModelRef("b", "org/b", revision="v1")
RECIPE = Recipe(
    base=ModelRef("base", "models/base"),
    sources=(A, B),
    rules=(
        copying_rule("a", ("model.embed_tokens.weight",)),
        copying_rule("b", ("model.norm.weight", "lm_head.weight")),
    ),
    dtype="bfloat16",
    layers=(
        PathLayer("a", 0, 1.0),
        PathLayer("a", 1, 1.0),
        PathLayer("b", 1, 0.8),
        PathLayer("b", 2, 1.0),
    ),
)


def test_runs_of_layers_are_slices_and_a_scale_is_one_of_the_output_of_the_mlp():
    text, reason = to_mergekit(RECIPE, build_catalogue(TENSORS))
    assert reason == ""
    content = yaml.safe_load(text)
    assert content == {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "models/a", "layer_range": [0, 2]}]},
            {
                "sources": [
                    {
                        "model": "org/b@v1",
                        "layer_range": [1, 2],
                        "parameters": {"scale": [{"filter": "mlp.down_proj", "value": 0.8}, {"value": 1.0}]},
                    }
                ]
            },
            {"sources": [{"model": "org/b@v1", "layer_range": [2, 3]}]},
        ],
        "base_model": "models/base",
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }


def test_layers_of_an_adapter_are_those_of_its_base_with_it():
    text, _ = to_mergekit(RECIPE, build_catalogue(TENSORS), adapters={"b"})
    slices = yaml.safe_load(text)["slices"]
    assert [each["sources"][0]["model"] for each in slices] == ["models/a", *["models/base+org/b@v1"] * 2]


@pytest.mark.parametrize("rules", [(), RECIPE.rules[:1], (replace(RECIPE.rules[0], sources=("b",)), RECIPE.rules[1])])
def test_ends_of_other_models_cannot_be_written(rules):
    text, reason = to_mergekit(replace(RECIPE, rules=rules), build_catalogue(TENSORS))
    assert text is None
    assert "at that end of the path" in reason
