from __future__ import annotations

import pytest

from evomerge.catalogue import PARTS, build_catalogue, layer_of, part_of

LLAMA = {
    "model.embed_tokens.weight": "embedding",
    "model.layers.0.input_layernorm.weight": "norm",
    "model.layers.0.self_attn.q_proj.weight": "attention",
    "model.layers.0.self_attn.q_norm.weight": "norm",
    "model.layers.0.self_attn.k_proj.bias": "attention",
    "model.layers.0.post_attention_layernorm.weight": "norm",
    "model.layers.0.mlp.gate_proj.weight": "mlp",
    "model.norm.weight": "norm",
    "lm_head.weight": "head",
}
GPT2 = {
    "transformer.wte.weight": "embedding",
    "transformer.wpe.weight": "embedding",
    "transformer.h.0.ln_1.weight": "norm",
    "transformer.h.0.attn.c_attn.weight": "attention",
    "transformer.h.0.attn.c_proj.bias": "attention",
    "transformer.h.0.ln_2.bias": "norm",
    "transformer.h.0.mlp.c_fc.weight": "mlp",
    "transformer.h.0.mlp.c_proj.weight": "mlp",
    "transformer.ln_f.weight": "norm",
    "wte.weight": "embedding",
    "h.0.mlp.c_fc.weight": "mlp",
}
OPT = {
    "model.decoder.embed_tokens.weight": "embedding",
    "model.decoder.embed_positions.weight": "embedding",
    "model.decoder.layers.0.self_attn.out_proj.weight": "attention",
    "model.decoder.layers.0.self_attn_layer_norm.weight": "norm",
    "model.decoder.layers.0.fc1.bias": "mlp",
    "model.decoder.layers.0.fc2.weight": "mlp",
    "model.decoder.layers.0.final_layer_norm.bias": "norm",
    "model.decoder.final_layer_norm.weight": "norm",
}
NEOX = {
    "gpt_neox.embed_in.weight": "embedding",
    "gpt_neox.layers.0.attention.query_key_value.weight": "attention",
    "gpt_neox.layers.0.attention.dense.bias": "attention",
    "gpt_neox.layers.0.mlp.dense_h_to_4h.weight": "mlp",
    "gpt_neox.layers.0.post_attention_layernorm.bias": "norm",
    "gpt_neox.final_layer_norm.weight": "norm",
    "embed_out.weight": "head",
}
MOE = {
    "model.layers.0.block_sparse_moe.gate.weight": "mlp",
    "model.layers.0.block_sparse_moe.experts.3.w2.weight": "mlp",
    "model.layers.0.mlp.experts.7.down_proj.weight": "mlp",
    "model.layers.0.mlp.experts.gate_up_proj": "mlp",
    "model.layers.0.mlp.shared_expert_gate.weight": "mlp",
    "model.layers.0.mlp.gate.weight": "mlp",
    "model.layers.0.self_attn.kv_a_layernorm.weight": "norm",
    "model.layers.0.self_attn.kv_a_proj_with_mqa.weight": "attention",
}
OTHERS = {
    "transformer.word_embeddings.weight": "embedding",
    "transformer.word_embeddings_layernorm.weight": "norm",
    "transformer.h.0.self_attention.query_key_value.weight": "attention",
    "transformer.blocks.0.norm_1.weight": "norm",
    "transformer.blocks.0.ffn.up_proj.weight": "mlp",
    "transformer.norm_f.weight": "norm",
    "model.layers.0.pre_feedforward_layernorm.weight": "norm",
    "output_projection.weight": "head",
    "lm_head.bias": "head",
}


@pytest.mark.parametrize(
    "names", [LLAMA, GPT2, OPT, NEOX, MOE, OTHERS], ids=["llama", "gpt2", "opt", "neox", "moe", "others"]
)
def test_the_shipped_patterns_find_the_part(names: dict[str, str]) -> None:
    assert {name: part_of(name) for name in names} == names


def test_a_name_that_no_pattern_knows_falls_into_rest() -> None:
    assert part_of("model.layers.0.mixer.A_log") == "rest"
    assert PARTS[-1] == "rest"


def test_patterns_can_be_overridden() -> None:
    assert part_of("model.layers.0.mixer.A_log", [("mlp", "mixer")]) == "mlp"


@pytest.mark.parametrize("stack", ["model.layers", "transformer.h", "h", "model.decoder.layers", "gpt_neox.layers"])
def test_the_layer_is_the_index_in_the_numbered_module_list(stack: str) -> None:
    names = {f"{stack}.{layer}.mlp.weight": layer for layer in range(12)} | {"embed.weight": None, "norm.weight": None}
    assert layer_of(names) == names


@pytest.mark.parametrize("experts", [2, 64])
def test_the_experts_of_a_layer_are_never_the_layer_stack(experts: int) -> None:
    names = {
        f"model.layers.{layer}.mlp.experts.{expert}.w1.weight": layer for layer in range(3) for expert in range(experts)
    }
    assert layer_of(names) == names
    one_layer = {name: layer for name, layer in names.items() if layer == 0}
    assert layer_of(one_layer) == one_layer


def test_the_longest_of_several_lists_is_the_layer_stack() -> None:
    names = [f"vision.blocks.{i}.weight" for i in range(4)] + [f"text.layers.{i}.weight" for i in range(9)]
    assert layer_of(names) == dict.fromkeys(names[:4]) | {name: i for i, name in enumerate(names[4:])}


def test_a_list_of_the_language_model_wins_over_a_longer_one() -> None:
    tower, text = [f"eyes.blocks.{i}.weight" for i in range(9)], [f"words.layers.{i}.weight" for i in range(4)]
    layers = dict.fromkeys(tower) | {name: i for i, name in enumerate(text)}
    assert layer_of([*tower, *text], language=text) == layers
    catalogue = build_catalogue(dict.fromkeys([*tower, *text], ((2,), "float32")), language=text)
    assert {entry.name: entry.layer for entry in catalogue.entries} == layers
    assert layer_of([*tower, *text], language=["no.list"])["eyes.blocks.8.weight"] == 8


@pytest.mark.parametrize("tower", ["vision_tower.encoder.layers", "model.visual.blocks", "git.image_encoder.layers"])
def test_a_list_that_reads_no_text_by_its_name_comes_last(tower: str) -> None:
    names = [f"{tower}.{i}.weight" for i in range(9)]
    assert layer_of([*names, "model.layers.0.weight"]) == dict.fromkeys(names) | {"model.layers.0.weight": 0}
    assert layer_of(names) == {name: i for i, name in enumerate(names)}


def test_a_model_without_lists_has_no_layers() -> None:
    assert layer_of(["a.weight", "b.bias"]) == {"a.weight": None, "b.bias": None}
    assert build_catalogue({"a.weight": ((2, 3), "float32")}).depth == 0


def test_a_catalogue_tells_sizes_depth_and_what_can_be_merged() -> None:
    catalogue = build_catalogue(
        {
            "layers.1.mlp.weight": ((2, 3), "bfloat16"),
            "layers.0.mlp.weight": ((2, 3), "bfloat16"),
            "steps": ((1,), "int64"),
            "scalar": ((), "float32"),
        }
    )
    assert catalogue.names == ("layers.0.mlp.weight", "layers.1.mlp.weight", "scalar", "steps")
    assert catalogue.depth == 2
    assert catalogue.parameters == 14
    assert [entry.name for entry in catalogue.mergeable] == ["layers.0.mlp.weight", "layers.1.mlp.weight", "scalar"]


def test_n23_a_tied_tensor_stands_once_with_its_other_names() -> None:
    shapes = {"embed.weight": ((4, 2), "float32"), "lm_head.weight": ((4, 2), "float32")}
    catalogue = build_catalogue(shapes, tied={"lm_head.weight": "embed.weight"})
    assert catalogue.names == ("embed.weight",)
    assert catalogue["embed.weight"].aliases == ("lm_head.weight",)
    assert catalogue.parameters == 8
    assert "lm_head.weight" not in catalogue


def test_equal_models_have_equal_catalogues_whatever_the_order() -> None:
    shapes = {"a.weight": ((1,), "float32"), "b.weight": ((2,), "float32")}
    assert build_catalogue(shapes) == build_catalogue(dict(reversed(shapes.items())))
