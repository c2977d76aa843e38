"""Tiny models whose class keeps tensors in another form than they are stored in, with random weights, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from evomerge.checkpoints import Source, open_source
from evomerge.recipe import ModelRef, Recipe, Rule

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
_FEW = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
_GROUPED = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
_MLA = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}

KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 3},
    "qwen2_moe": {**_FEW, "shared_expert_intermediate_size": 8},
    "qwen3_moe": _FEW,
    "olmoe": _FEW,
    "deepseek_v3": {**_GROUPED, **_MLA, "first_k_dense_replace": 1},
    "jamba": {
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 2,
        "use_mamba_kernels": False,
    },
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "hrm_text": {},
}
STACKED = [kind for kind in KINDS if kind not in ("gpt_oss", "hrm_text")]


def write_kind(kind: str, directory: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A model of a kind, in a directory."""
    known = AutoConfig.for_model(kind).to_dict()
    settings = {name: value for name, value in SIZES.items() if name in known}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings | KINDS[kind] | changes))
        with torch.no_grad():
            for parameter in model.parameters():  # norms and biases start at 1 and 0, which would hide mix-ups
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(directory)
    return directory


def open_kind(kind: str, directory: Path, *, like: Source | None = None, **settings: Any) -> Source:
    """The same, opened under the name of the directory."""
    return open_source(ModelRef(directory.name, str(write_kind(kind, directory, **settings))), like=like)


def average(base: Source, expert: Source, *, weight: float = 0.5, dtype: str = "float32") -> Recipe:
    """The recipe of a weighted mean of two models."""
    rule = Rule(
        tensors=tuple(entry.name for entry in base.catalogue.mergeable),
        method="linear",
        sources=(base.name, expert.name),
        parameters={"weight": (1 - weight, weight)},
        options={"normalize": True},
    )
    return Recipe(base=base.ref, sources=(expert.ref,), rules=(rule,), dtype=dtype)
