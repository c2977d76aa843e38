"""Adapters as sources: their tensors are those of PEFT's own merge, and what has no such tensors is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_models import SIZES, merged_by_peft, open_base, save_adapter, save_base
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, MixtralConfig

from evomerge.adapters import AdaptedTensors, open_expert
from evomerge.bank import WeightBank
from evomerge.bank.open_bank import open_bank
from evomerge.checkpoints import check_compatible, open_source, tensor_digests
from evomerge.checkpoints.source import Source
from evomerge.errors import InvalidInput
from evomerge.opening.inputs import open_inputs
from evomerge.recipe import ModelRef, single_source
from evomerge.spec.reading import load_spec

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ranks and alphas by pattern": {
        "rank_pattern": {"layers.1.mlp.down_proj": 2, "^model.layers.0.self_attn.q_proj": 3},
        "alpha_pattern": {"q_proj": 5, "layers.1.self_attn.q_proj": 7},
    },
    "rank-stabilised": {"use_rslora": True},
    "weight-decomposed": {"use_dora": True},
    "modules saved whole": {"modules_to_save": ["lm_head", "input_layernorm"]},
    "embeddings": {"target_modules": ["embed_tokens", "lm_head", "k_proj"]},
    "weight-decomposed embeddings": {"target_modules": ["embed_tokens", "k_proj"], "use_dora": True},
}


def _ref(folder: Path) -> ModelRef:
    return ModelRef(folder.name, str(folder))


def _open(base: Path, adapter: Path) -> Source:
    return open_expert(_ref(adapter), base=open_base(base))


def _edit(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _assert_same(source: Source, merged: dict[str, torch.Tensor]) -> None:
    for name, tensor in source.tensors.items():
        torch.testing.assert_close(tensor, merged[source.live_names[name]], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS.keys())
def test_an_adapter_has_the_tensors_of_peft_s_merge(tmp_path: Path, settings: dict[str, Any]) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", **settings)
    source = _open(base, adapter)
    _assert_same(source, merged_by_peft(base, adapter))
    assert any(not torch.equal(source.tensors[name], tensor) for name, tensor in open_base(base).tensors.items())


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}], ids=["plain", "weight-decomposed"])
def test_weights_that_are_stored_transposed_are_changed_as_peft_changes_them(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    base = save_base(tmp_path / "base", "gpt2")
    modules = ["c_attn", "c_proj", "c_fc"]
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=modules, fan_in_fan_out=True, **settings)
    _assert_same(_open(base, adapter), merged_by_peft(base, adapter))


@pytest.mark.parametrize("modules", [["c_proj", "lm_head"], ["lm_head", "c_proj"], ["c_proj", "wte"]])
@pytest.mark.parametrize("said", [True, False])
def test_a_square_weight_is_read_by_its_module_as_peft_does_whatever_the_settings_say(
    tmp_path: Path, modules: list[str], said: bool
) -> None:
    base = save_base(tmp_path / "base", "gpt2", vocab_size=32, tie_word_embeddings=False)
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=modules)
    _edit(adapter, fan_in_fan_out=said)
    _assert_same(_open(base, adapter), merged_by_peft(base, adapter))


def test_of_resized_embeddings_the_tokens_of_the_base_are_taken_and_the_check_says_so(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(
        base, tmp_path / "adapter", tokens=70, modules_to_save=["embed_tokens", "lm_head"], target_modules=["q_proj"]
    )
    opened = open_base(base)
    source = open_expert(_ref(adapter), base=opened)
    merged = merged_by_peft(base, adapter, tokens=70)
    _assert_same(source, {name: tensor[:64] if len(tensor) == 70 else tensor for name, tensor in merged.items()})
    assert "70 rows in the adapter and 64 in 'base'" in "\n".join(check_compatible(opened, [source]))


def _write_words(folder: Path, *words: str) -> None:
    """A tokenizer whose ids are the places of the words."""
    vocabulary = WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0])
    Tokenizer(vocabulary).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"modules_to_save": ["embed_tokens"]}, ["model.embed_tokens.weight"]),
        ({"target_modules": ["lm_head"]}, ["lm_head.weight"]),
        ({}, []),
    ],
    ids=["saved embeddings", "a product in the head", "neither"],
)
def test_no_policy_takes_moved_tokens_from_an_adapter_that_changes_their_rows(
    tmp_path: Path, settings: dict[str, Any], changed: list[str]
) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", **settings)
    _write_words(base, "a", "b", "<x>")
    _write_words(adapter, "a", "b", "<pad>", "<x>")
    opened = open_base(base)
    for policy in (None, "base"):
        source = open_expert(replace(_ref(adapter), tokenizer=policy), base=opened)
        if policy and not changed:
            assert "tokens stand in one vocabulary only: '<pad>'" in check_compatible(opened, [source])[0]
            continue
        with pytest.raises(InvalidInput, match="1 ids to other tokens: '<x>' is 2 and 3") as refused:
            check_compatible(opened, [source])
        reason = f"it changes {changed[0]}, whose rows no policy aligns" if changed else "`tokenizer: base` in search"
        assert reason in str(refused.value)


def test_a_policy_that_does_not_exist_is_refused_for_an_adapter_too(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    with pytest.raises(InvalidInput, match="tokenizer: expert is no policy"):
        open_expert(replace(_ref(adapter), tokenizer="expert"), base=open_base(base))


def test_an_adapter_of_16_bits_keeps_what_16_bits_would_round_away(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", dtype=torch.bfloat16)
    adapter = save_adapter(base, tmp_path / "adapter", size=1e-4)
    opened = open_base(base)
    source = open_expert(_ref(adapter), base=opened)
    name = "model.layers.0.self_attn.q_proj.weight"
    stored = load_file(adapter / "adapter_model.safetensors")
    left, right = (stored[f"base_model.model.{name.replace('weight', f'lora_{each}.weight')}"].float() for each in "BA")
    assert source.header[name][1] == "float32"
    torch.testing.assert_close(source.tensors[name] - opened.tensors[name].float(), 2 * left @ right, rtol=0, atol=2e-8)
    assert check_compatible(opened, [source]) == []


def test_a_base_of_8_bits_is_changed_in_float32(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", modules_to_save=["lm_head"])
    file = base / "model.safetensors"
    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(file).items()}, file)
    opened = open_base(base)
    source = open_expert(_ref(adapter), base=opened)
    stored = load_file(adapter / "adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    left, right = (stored[f"base_model.model.{name.replace('weight', f'lora_{each}.weight')}"] for each in "BA")
    torch.testing.assert_close(source.tensors[name], opened.tensors[name].float() + 2 * left @ right)
    assert torch.equal(source.tensors["lm_head.weight"], stored["base_model.model.lm_head.weight"])
    assert source.header[name][1] == source.header["lm_head.weight"][1] == "float32"


def test_a_tensor_that_is_not_changed_is_the_base_s_own(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    opened = open_base(base)
    source = open_expert(_ref(adapter), base=opened)
    assert isinstance(source.tensors, AdaptedTensors)
    assert sorted(source.tensors.changes) == [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)]


def test_copying_an_adapter_gives_the_model_that_it_makes(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    opened = open_base(base)
    source = open_expert(_ref(adapter), base=opened)
    bank = WeightBank(opened, [source], dtype=torch.float32, device=torch.device("cpu"))
    names = tuple(entry.name for entry in opened.catalogue.mergeable)
    recipe = single_source(opened.ref, source.ref, names, "float32")
    live = bank.materialize(recipe).state_dict()
    for name, tensor in merged_by_peft(base, adapter).items():
        torch.testing.assert_close(live[name], tensor, rtol=1e-6, atol=1e-6)


def test_the_fingerprint_depends_on_adapter_settings_and_base(tmp_path: Path) -> None:
    base, other = save_base(tmp_path / "base"), save_base(tmp_path / "other", rms_norm_eps=0.1)
    adapter = save_adapter(base, tmp_path / "adapter")
    first = _open(base, adapter).ref.fingerprint
    _edit(adapter, inference_mode=False, lora_dropout=0.5)
    assert _open(base, adapter).ref.fingerprint == first
    assert _open(other, adapter).ref.fingerprint != first
    _edit(adapter, lora_alpha=9)
    changed = _open(base, adapter).ref.fingerprint
    assert changed != first
    with pytest.raises(InvalidInput, match="or its base has changed"):
        open_expert(replace(_ref(adapter), fingerprint=first), base=open_base(base))


def test_an_adapter_of_another_model_is_noted(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    _edit(adapter, base_model_name_or_path="owner/another-model")
    opened = open_base(base)
    (warning,) = check_compatible(opened, [open_expert(_ref(adapter), base=opened)])
    assert "says that it was trained on owner/another-model" in warning


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "type 'IA3'"),
        ({"use_qalora": True}, "QA-LoRA"),
        ({"trainable_token_indices": [1]}, "single tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"r": 0}, "gives 0 as r"),
        ({"r": 5}, r"expected \[5, inputs\] and \[outputs, 5\]"),
        ({"lora_alpha": "8"}, "gives '8' as lora_alpha"),
        ({"rank_pattern": {"(": 2}}, r"gives '\(' as rank_pattern"),
        ({"use_rslora": 1}, "gives 1 as use_rslora"),
        ({"use_dora": True}, "has no magnitude"),
    ],
    ids=str,
)
def test_settings_that_no_merge_expresses_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    _edit(adapter, **changes)
    with pytest.raises(InvalidInput, match=said):
        _open(base, adapter)


def _without_a_factor(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]


def _of_another_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"] = torch.zeros(8, 4)


def _of_a_deeper_model(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.layers.7.self_attn.q_proj.lora_B.weight"] = torch.zeros(32, 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without_a_factor, "only .* of the two factors"),
        (_of_another_shape, "does not fit model.layers.0.self_attn.q_proj.weight"),
        (_of_a_deeper_model, r"'base' lacks .*layers\.7.* give the model that the adapter was trained on"),
    ],
)
def test_tensors_that_do_not_fit_the_base_are_refused(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], said: str
) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(InvalidInput, match=said):
        _open(base, adapter)


def test_a_tied_tensor_is_changed_in_all_of_its_uses_or_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", tie_word_embeddings=True)
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["embed_tokens"])
    with pytest.raises(InvalidInput, match="one tied tensor"):
        _open(base, adapter)
    stored = load_file(adapter / "adapter_model.safetensors")
    whole = torch.ones(64, 32)
    names = ("base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight")
    save_file({names[0]: whole}, adapter / "adapter_model.safetensors")
    with pytest.raises(InvalidInput, match="one tied tensor"):
        _open(base, adapter)
    save_file({name: whole.clone() for name in names}, adapter / "adapter_model.safetensors")
    assert torch.equal(_open(base, adapter).tensors["model.embed_tokens.weight"], whole)
    assert len(stored) > 0


def test_a_module_saved_whole_is_read_by_its_name_in_the_files_of_the_base(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = MixtralConfig(**SIZES, num_local_experts=2)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    opened = open_base(tmp_path / "base")
    gate, place = "model.layers.0.block_sparse_moe.gate.weight", "model.layers.0.mlp.gate.weight"
    assert opened.live_names[gate] == place
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": [], "modules_to_save": ["gate"]}
    for number, name in enumerate((gate, place)):
        adapter = tmp_path / f"adapter{number}"
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text(json.dumps(settings))
        whole = torch.full_like(opened.tensors[gate], number + 1.0)
        save_file({f"base_model.model.{name}": whole}, adapter / "adapter_model.safetensors")
        assert torch.equal(open_expert(_ref(adapter), base=opened).tensors[gate], whole)


def test_a_folder_without_weights_or_with_a_whole_model_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    (adapter / "model.safetensors").touch()
    with pytest.raises(InvalidInput, match="an adapter and a whole model"):
        _open(base, adapter)
    (adapter / "model.safetensors").unlink()
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(InvalidInput, match=r"no adapter_model\.safetensors; adapter_model\.bin is a pickle"):
        _open(base, adapter)


def test_an_adapter_cannot_be_the_base(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    with pytest.raises(InvalidInput, match="an adapter, which cannot be a base"):
        open_source(_ref(adapter))


def test_a_whole_model_is_opened_as_it_always_was(tmp_path: Path) -> None:
    base, other = save_base(tmp_path / "base"), save_base(tmp_path / "other", rms_norm_eps=0.1)
    opened = open_base(base)
    assert open_expert(_ref(other), base=opened) is not None
    assert open_expert(_ref(other), base=opened).ref == open_source(_ref(other), like=opened).ref


def test_a_search_takes_an_adapter_as_an_expert_and_its_workers_rebuild_the_same_weights(
    tmp_path: Path, write_spec: Callable[..., Path]
) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    sources = [{"name": folder.name, "location": str(folder)} for folder in (base, adapter)]
    inputs = open_inputs(load_spec(write_spec(sources=sources)))
    assert inputs.warnings == ()
    setup = inputs.setup()
    recipe = inputs.space.decode(inputs.space.centre)
    bank = open_bank(setup.base, setup.experts, dtype=setup.dtype, device="cpu")
    assert bank.live_digests(recipe) == tensor_digests(bank.merged(recipe))


def test_a_worker_ends_when_the_files_of_an_adapter_change(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    opened = open_base(base)
    source = open_expert(_ref(adapter), base=opened)
    bank = WeightBank(opened, [source], dtype=torch.float32, device=torch.device("cpu"))
    _edit(adapter, lora_alpha=99)
    with pytest.raises(InvalidInput, match=r"adapter_config\.json has changed"):
        next(bank.merged(single_source(opened.ref, source.ref, (), "float32")))
