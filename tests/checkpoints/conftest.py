"""Tiny models with random weights, saved as transformers saves them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from evomerge.checkpoints import Source, open_source
from evomerge.recipe import ModelRef
from evomerge.tensors.one_thread import one_thread

LLAMA_SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
NEOX_SIZES = {key: value for key, value in LLAMA_SIZES.items() if key != "num_key_value_heads"}
OPT_SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}

KINDS: dict[str, Callable[..., PreTrainedConfig]] = {
    "llama": lambda **over: LlamaConfig(**LLAMA_SIZES | over),
    "llama_tied": lambda **over: LlamaConfig(**LLAMA_SIZES | {"tie_word_embeddings": True} | over),
    "gpt2": lambda **over: GPT2Config(
        **{"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64} | over
    ),
    "qwen2": lambda **over: Qwen2Config(**LLAMA_SIZES | {"tie_word_embeddings": True} | over),
    "neox": lambda **over: GPTNeoXConfig(**NEOX_SIZES | over),
    "opt": lambda **over: OPTConfig(**OPT_SIZES | over),
    "mixtral": lambda **over: MixtralConfig(**LLAMA_SIZES | {"num_local_experts": 2} | over),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """make_model(kind, name, seed=0, dtype=..., max_shard_size=..., **config) -> directory."""

    def make(
        kind: str,
        name: str = "model",
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        max_shard_size: str = "5GB",
        **config: Any,
    ) -> Path:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(KINDS[kind](**config))
            with torch.no_grad():
                for parameter in model.parameters():  # biases and norms start at 0 and 1, which would hide mix-ups
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        directory = tmp_path / name
        model.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
        return directory

    return make


@pytest.fixture
def open_model(make_model: Callable[..., Path]) -> Callable[..., Source]:
    """open_model(kind, name, like=None, **as make_model) -> Source."""

    def opened(kind: str, name: str = "model", *, like: Source | None = None, **settings: Any) -> Source:
        return open_source(ModelRef(name, str(make_model(kind, name, **settings))), like=like)

    return opened
