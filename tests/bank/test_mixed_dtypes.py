"""Models of which transformers keeps some tensors in float32 whatever the dtype: merged, digested, exported in one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AfmoeConfig, AutoModelForCausalLM, FlintConfig, GptOssConfig, PreTrainedConfig

from evomerge.artefacts import write_model
from evomerge.bank import WeightBank
from evomerge.checkpoints import Source, live, load_skeleton, open_source, tensor_digest
from evomerge.errors import InvalidInput
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.passes.kernels import Kernels
from evomerge.recipe import ModelRef, Recipe, Rule

CPU = torch.device("cpu")
ITEMS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
FURTHER = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "sliding_window": 16}

# In bfloat16 only what is marked `_strict` stays in float32, in float16 all of it.
KEPT: dict[str, tuple[Callable[[], PreTrainedConfig], str, str]] = {
    "afmoe": (
        lambda: AfmoeConfig(**SIZES, **FURTHER, num_dense_layers=2),
        "float16",
        "model.layers.1.self_attn.q_norm.weight",
    ),
    "flint": (
        lambda: FlintConfig(**SIZES, **FURTHER, mlp_only_layers=[0, 1]),
        "bfloat16",
        "model.layers.1.self_attn.softmax_offset",
    ),
    "gpt_oss": (
        lambda: GptOssConfig(**SIZES, **FURTHER, num_local_experts=2, num_experts_per_tok=1),
        "float16",
        "model.norm.weight",
    ),
}


class CompiledKernels:
    """Waits for the compiled kernel, which the user's cache keeps between runs of the tests."""

    def __init__(self):
        self._kernels = Kernels(CPU)

    def find(self, kind, *, compile_missing):
        return self._kernels.compile(kind)


@pytest.fixture(params=KEPT)
def kept(request, tmp_path) -> tuple[Source, Source, str, str]:
    """Base, expert, the dtype of the search, and a tensor that the live model keeps in float32."""
    make, dtype, name = KEPT[request.param]
    for seed, which in enumerate(("base", "expert")):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(make(), dtype=torch.float32)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(tmp_path / which)
    base = open_source(ModelRef("base", str(tmp_path / "base")))
    return base, open_source(ModelRef("expert", str(tmp_path / "expert")), like=base), dtype, name


def recipe_of(base: Source, expert: Source, dtype: str, names: tuple[str, ...] | None = None) -> Recipe:
    rule = Rule(
        tensors=names or tuple(entry.name for entry in base.catalogue.mergeable),
        method="linear",
        sources=("base", "expert"),
        parameters=resolve_parameters("linear", {"weight": [0.3, 0.7]}, 2),
        options=resolve_options("linear", {}),
    )
    return Recipe(base=base.ref, sources=(expert.ref,), rules=(rule,), dtype=dtype)


def bank_of(base: Source, expert: Source, dtype: str, kernels: Any) -> WeightBank:
    return WeightBank(base, [expert], dtype=getattr(torch, dtype), device=CPU, kernels=kernels)


@pytest.mark.parametrize("names", [None, ("lm_head.weight",)], ids=["all merged", "one merged"])
def test_n9_n14_scored_digested_and_exported_weights_are_one_whatever_dtype_is_live(kept, names, tmp_path):
    assert_one(kept, names, Kernels(CPU, tmp_path / "none"), tmp_path / "out")


@pytest.mark.parametrize("kept", ["afmoe", "gpt_oss"], indirect=True)
def test_n9_n14_compiled_kernels_write_no_other_dtype_than_theirs(kept, tmp_path):
    assert_one(kept, None, CompiledKernels(), tmp_path / "out")


def assert_one(kept, names, kernels, out):
    base, expert, dtype, name = kept
    bank = bank_of(base, expert, dtype, kernels)
    recipe = recipe_of(base, expert, dtype, names)
    assert (bank._fused(recipe.rules[0], recipe) is not None) == isinstance(kernels, CompiledKernels)
    model = bank.materialize(recipe)
    live_tensor = bank._live[name]
    assert live_tensor.dtype == torch.float32
    assert torch.equal(live_tensor, live_tensor.to(bank.dtype).float())
    average = 0.3 * base.tensors[name] + 0.7 * expert.tensors[name]
    expected = average if names is None else base.tensors[name]
    torch.testing.assert_close(live_tensor, expected.to(bank.dtype).float(), rtol=1e-2, atol=1e-6)
    merged = {each: tensor.clone() for each, tensor in bank.merged(recipe)}
    assert bank.live_digests(recipe) == {each: tensor_digest(tensor) for each, tensor in merged.items()}
    write_model(out, base=base, tensors=merged.items(), dtype=bank.dtype, recipe=recipe)
    exported, loading = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"]
    assert torch.equal(model(ITEMS).logits, exported(ITEMS).logits)


def test_what_is_restored_has_the_values_of_the_searchs_dtype(kept):
    base, expert, dtype, _ = kept
    bank = bank_of(base, expert, dtype, Kernels(CPU))
    few = recipe_of(base, expert, dtype, ("lm_head.weight",))
    before = bank.live_digests(few)
    assert bank.live_digests(recipe_of(base, expert, dtype)) != before
    assert bank.live_digests(few) == before


def test_a_skeleton_in_16_bits_holds_values_of_16_bits_only(kept):
    base, _, dtype, _ = kept
    _, parameters = load_skeleton(base, dtype=getattr(torch, dtype))
    for name, tensor in parameters.items():
        assert torch.equal(tensor, base.tensors[name].to(getattr(torch, dtype)).to(tensor.dtype)), name


def test_a_live_tensor_that_is_too_narrow_for_the_searchs_dtype_is_refused(kept, monkeypatch):
    base, _, _, name = kept

    class Narrow:
        """Makes one tensor of the model narrower than what was asked for, as a model's own code may."""

        @staticmethod
        def from_pretrained(*args, **settings):
            model, loading = AutoModelForCausalLM.from_pretrained(*args, **settings)
            module, _, attribute = base.live_names[name].rpartition(".")
            getattr(model.get_submodule(module), attribute).data = torch.zeros(1, dtype=torch.bfloat16)
            return model, loading

    monkeypatch.setattr(live, "AutoModelForCausalLM", Narrow)
    with pytest.raises(InvalidInput, match=rf"{name} in bfloat16, which cannot hold the values of float32"):
        load_skeleton(base, dtype=torch.float32)
