"""Models of other depths: what a path is scored as is what it is exported as, and a layer that stays does not move."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from evomerge.artefacts import write_model
from evomerge.bank import WeightBank
from evomerge.bank import skeletons as skeletons_module
from evomerge.checkpoints import check_scorable, open_source, tensor_digests
from evomerge.errors import InvalidInput, MergeError
from evomerge.recipe import ModelRef, PathLayer, Recipe, copying_rule

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}
LLAMA = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": 0}
GPT2 = {"vocab_size": 97, "n_embd": 32, "n_layer": 4, "n_head": 4, "initializer_range": 0.2}
WINDOWS = {"head_dim": 8, "sliding_window": 6}
KINDS = {
    "llama": ("LlamaConfig", LLAMA),
    "tied": ("LlamaConfig", {**LLAMA, "tie_word_embeddings": True}),
    "gpt2": ("GPT2Config", GPT2),
    "gemma2": ("Gemma2Config", {**LLAMA, **WINDOWS, "query_pre_attn_scalar": 8}),
    "qwen3": ("Qwen3Config", {**LLAMA, **WINDOWS, "use_sliding_window": True, "max_window_layers": 2}),
    "lfm2": (
        "Lfm2Config",
        {**LLAMA, "layer_types": ["conv", "full_attention", "conv", "full_attention"], "conv_L_cache": 3},
    ),
    "smollm3": ("SmolLM3Config", {**LLAMA, "no_rope_layer_interval": 2}),
}
UNSCALED = ("gemma2",)  # a norm stands behind the MLP
PATHS = [
    [("a", 0, 1.0), ("b", 1, 0.7), ("a", 0, 1.0), ("base", 3, 1.0), ("a", 2, 1.3), ("b", 3, 1.0)],
    [("a", 0, 1.0), ("b", 1, 0.7)],
    [("b", 2, 1.0), ("a", 1, 0.5), ("b", 1, 0.7), ("base", 0, 0.0), ("a", 3, 1.0)],
]
ITEMS = torch.randint(3, 97, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def open_bank(tmp_path: Path) -> Callable[..., WeightBank]:
    """open_bank(kind, dtype, **settings) -> a bank over base, a and b of an architecture."""

    def opened(kind: str, dtype: torch.dtype = torch.float32, **settings: object) -> WeightBank:
        config, sizes = KINDS[kind]
        for seed, name in enumerate(("base", "a", "b")):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = AutoModelForCausalLM.from_config(getattr(transformers, config)(**{**sizes, **settings}))
                with torch.no_grad():
                    for parameter in model.parameters():  # biases and norms would be alike otherwise
                        parameter.add_(torch.randn_like(parameter) * 0.05)
            model.save_pretrained(tmp_path / name)
        base = open_source(ModelRef("base", str(tmp_path / "base")))
        experts = [open_source(ModelRef(name, str(tmp_path / name)), like=base) for name in ("a", "b")]
        return WeightBank(base, experts, dtype=dtype, device=torch.device("cpu"))

    return opened


def recipe_of(bank: WeightBank, path: list[tuple[str, int, float]], dtype: str = "float32") -> Recipe:
    experts = tuple(ModelRef(name, name, fingerprint=bank._fingerprints[name]) for name in ("a", "b"))
    layers = tuple(PathLayer(*layer) for layer in path)
    return Recipe(base=bank.base.ref, sources=experts, rules=(), dtype=dtype, layers=layers)


def paths_for(kind: str) -> list[list[tuple[str, int, float]]]:
    if kind in UNSCALED:
        return [[(source, layer, 1.0) for source, layer, _ in path] for path in PATHS]
    return PATHS


@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, "float32") for kind in KINDS), ("tied", "bfloat16"), ("lfm2", "bfloat16")]
)
def test_a_path_is_scored_as_it_is_exported_bit_for_bit(open_bank, tmp_path, kind, dtype):
    bank = open_bank(kind, getattr(torch, dtype))
    for path in paths_for(kind):
        recipe = recipe_of(bank, path, dtype)
        live = bank.materialize(recipe)
        write_model(
            tmp_path / "out",
            base=bank.base,
            tensors=bank.merged(recipe),
            dtype=bank.dtype,
            recipe=recipe,
        )
        exported, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not loading["missing_keys"]
        assert not loading["unexpected_keys"]
        assert exported.config.num_hidden_layers == len(path)
        with torch.no_grad():
            assert torch.equal(live(ITEMS).logits, exported(ITEMS).logits)
        written = [
            model.generate(ITEMS, attention_mask=torch.ones_like(ITEMS), max_new_tokens=8, do_sample=False)
            for model in (live, exported)
        ]
        assert torch.equal(*written)
        again = open_source(ModelRef("again", str(tmp_path / "out")))
        check_scorable(again)
        assert bank.live_digests(recipe) == tensor_digests(again.tensors.items())


def test_the_kinds_of_layers_move_with_them(open_bank, tmp_path):
    bank = open_bank("lfm2")
    recipe = recipe_of(bank, [("a", 1, 1.0), ("a", 0, 1.0), ("b", 1, 1.0)])
    write_model(tmp_path / "out", base=bank.base, tensors=bank.merged(recipe), dtype=torch.float32, recipe=recipe)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["layer_types"] == ["full_attention", "conv", "full_attention"]
    assert (config["num_hidden_layers"], bank.base.config["num_hidden_layers"]) == (3, 4)
    assert Recipe.from_json((tmp_path / "out" / "recipe.json").read_text()) == recipe


def test_the_own_stack_of_a_source_is_that_source(open_bank):
    bank = open_bank("gpt2")
    outside = copying_rule("a", bank._outside)
    own = replace(recipe_of(bank, [("a", layer, 1.0) for layer in range(4)]), rules=(outside,))
    plain = AutoModelForCausalLM.from_pretrained(Path(bank.base.ref.location).parent / "a")
    with torch.no_grad():
        assert torch.equal(bank.materialize(own)(ITEMS).logits, plain(ITEMS).logits)


@pytest.mark.parametrize(("kind", "output"), [("llama", "mlp.down_proj"), ("gpt2", "mlp.c_proj")])
def test_a_scale_multiplies_what_the_mlp_adds_and_nothing_else(open_bank, kind, output):
    bank = open_bank(kind)
    plain, scaled = (dict(bank.merged(recipe_of(bank, [("a", 0, 1.0), ("a", 1, scale)]))) for scale in (1.0, 0.3))
    changed = {name for name in plain if not torch.equal(plain[name], scaled[name])}
    expected = {name for name in plain if f".1.{output}." in name}
    assert changed == expected
    assert len(expected) == (2 if kind == "gpt2" else 1)  # the weight, and the bias where there is one
    for name in expected:
        assert torch.equal(scaled[name], plain[name] * torch.tensor(0.3))


def test_a_scale_is_multiplied_in_fp32_and_rounded_once(open_bank):
    bank = open_bank("llama", torch.bfloat16)
    name = "model.layers.0.mlp.down_proj.weight"
    merged = dict(bank.merged(recipe_of(bank, [("b", 2, 0.7)], "bfloat16")))
    stored = bank.weights["b"]["model.layers.2.mlp.down_proj.weight"]
    assert torch.equal(merged[name], (stored.float() * 0.7).to(torch.bfloat16))


def test_layers_are_the_sources_own_memory_and_one_that_stays_is_not_touched(open_bank):
    bank = open_bank("llama")
    first = bank.materialize(recipe_of(bank, PATHS[0]))
    own = bank.weights["b"]["model.layers.3.self_attn.q_proj.weight"]
    stays = first.model.layers[5].self_attn.q_proj.weight
    assert stays.data_ptr() == own.data_ptr()
    other = [*PATHS[0][:4], ("b", 0, 1.0), PATHS[0][5]]
    assert bank.materialize(recipe_of(bank, other)) is first
    assert first.model.layers[5].self_attn.q_proj.weight is stays
    deeper = bank.materialize(recipe_of(bank, [*other, other[5]]))
    assert deeper is not first
    assert deeper.model.layers[6].self_attn.q_proj.weight.data_ptr() == own.data_ptr()
    assert deeper.model.embed_tokens is first.model.embed_tokens


def test_scaled_tensors_are_kept_for_the_next_path_and_given_back_by_models_that_are_not_in_use(open_bank):
    bank = open_bank("llama")
    short = bank.materialize(recipe_of(bank, PATHS[1]))
    scaled = short.model.layers[1].mlp.down_proj.weight
    own = bank.weights["b"]["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(scaled, own * torch.tensor(0.7))
    deep = bank.materialize(recipe_of(bank, PATHS[2]))
    assert deep.model.layers[2].mlp.down_proj.weight.data_ptr() == scaled.data_ptr()
    assert short.model.layers[1].mlp.down_proj.weight.data_ptr() == own.data_ptr()
    again = bank.materialize(recipe_of(bank, PATHS[1]))
    assert torch.equal(again.model.layers[1].mlp.down_proj.weight, scaled)


def test_models_of_a_depth_are_built_once_and_a_limited_number_of_them_is_kept(open_bank, monkeypatch):
    built: list[int] = []
    build = skeletons_module.build_stacked
    monkeypatch.setattr(
        skeletons_module,
        "build_stacked",
        lambda source, like: (built.append(source.catalogue.depth), build(source, like))[1],
    )
    monkeypatch.setattr(skeletons_module, "MOST", 2)
    bank = open_bank("llama")
    for depth in (2, 3, 2, 3):
        bank.materialize(recipe_of(bank, PATHS[0][:depth]))
    assert built == [2, 3]
    for depth in (4, 2):
        bank.materialize(recipe_of(bank, PATHS[0][:depth]))
    assert built == [2, 3, 4, 2]


def test_an_ordinary_merge_between_two_paths_changes_neither(open_bank):
    bank = open_bank("tied")
    path = recipe_of(bank, PATHS[0])
    soup = replace(path, layers=(), rules=(copying_rule("b", tuple(bank.base.catalogue.names)),))
    before = bank.materialize(path)(ITEMS).logits
    merged = bank.materialize(soup)(ITEMS).logits
    assert torch.equal(bank.materialize(path)(ITEMS).logits, before)
    assert torch.equal(bank.materialize(soup)(ITEMS).logits, merged)
    with bank.borrow() as (_, live), torch.no_grad():
        for tensor in live.values():
            tensor.fill_(0.5)
    assert torch.equal(bank.materialize(path)(ITEMS).logits, before)


def test_the_model_that_is_tried_out_for_a_path_depends_on_its_kinds_of_layers_alone(open_bank):
    bank = open_bank("qwen3")
    one, other = (
        recipe_of(bank, [(source, at, 1.0) for source, at in path]).layers
        for path in ([("a", 0), ("b", 3), ("b", 2)], [("b", 1), ("a", 2), ("base", 3)])
    )
    assert bank.live_model(one) is bank.live_model(other)
    logits = [bank.base_model(path)(ITEMS).logits for path in (one, other)]
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ([("c", 0, 1.0)], "neither base nor source"),
        ([("a", 4, 1.0)], "no layer 4"),
        ([("a", -1, 1.0)], "no layer -1"),
        ([("a", 0, float("nan"))], "finite"),
    ],
)
def test_a_path_that_cannot_be_followed_is_refused(open_bank, path, words):
    bank = open_bank("llama")
    with pytest.raises(InvalidInput, match=words):
        bank.materialize(recipe_of(bank, path))
    with pytest.raises(InvalidInput, match=words):
        next(bank.merged(recipe_of(bank, path)))


def test_a_rule_inside_of_layers_is_refused_beside_a_path(open_bank):
    bank = open_bank("llama")
    rule = copying_rule("a", ("model.layers.0.mlp.down_proj.weight",))
    with pytest.raises(InvalidInput, match="takes layers as they are"):
        bank.materialize(replace(recipe_of(bank, PATHS[0]), rules=(rule,)))


def test_a_scale_that_a_norm_would_undo_is_refused(open_bank):
    bank = open_bank("gemma2")
    with pytest.raises(InvalidInput, match=r"post_feedforward_layernorm\.weight normalises"):
        bank.materialize(recipe_of(bank, PATHS[0]))


def test_a_scale_beyond_the_dtype_is_a_failed_merge(open_bank):
    bank = open_bank("llama")
    with pytest.raises(MergeError, match="not finite"):
        bank.materialize(recipe_of(bank, [("a", 0, 1e38), ("a", 1, 1e39)]))


def test_a_layer_that_is_not_finite_in_the_scoring_dtype_is_a_failed_merge(open_bank):
    bank = open_bank("llama", torch.float16)
    bank._weights["a"] = dict(bank.weights["a"])
    name = "model.layers.1.mlp.up_proj.weight"
    bank._weights["a"][name] = bank.weights["a"][name] * 1e6
    recipe = recipe_of(bank, [("a", 1, 1.0)], "float16")
    with pytest.raises(MergeError, match=r"up_proj\.weight' of 'a' is not finite in float16"):
        bank.materialize(recipe)
    with pytest.raises(MergeError, match="not finite"):
        dict(bank.merged(recipe))
    assert torch.isfinite(bank.materialize(recipe_of(bank, [("a", 0, 1.0)], "float16"))(ITEMS).logits).all()


def test_a_model_whose_layers_compute_by_their_place_is_refused(open_bank):
    bank = open_bank("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(InvalidInput, match="attn has another scaling"):
        bank.materialize(recipe_of(bank, [("a", 0, 1.0), ("a", 2, 1.0)]))
