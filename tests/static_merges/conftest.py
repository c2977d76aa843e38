"""Tiny models with random weights for merges without a search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture
def make_models(tmp_path: Path) -> Callable[..., list[str]]:
    """make_models(tied=False, dtype=..., max_shard_size=..., **config) -> directories of a base and two fine-tunes."""

    def make(
        *, tied: bool = False, dtype: torch.dtype = torch.float32, max_shard_size: str = "5GB", **config: int
    ) -> list[str]:
        sizes = LlamaConfig(**SIZES | config, tie_word_embeddings=tied)
        directories = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = LlamaForCausalLM(sizes).to(dtype)
            model.generation_config = GenerationConfig(max_new_tokens=7)
            for name in ("base", "math", "code"):
                directory = tmp_path / "models" / name
                model.save_pretrained(directory, max_shard_size=max_shard_size)
                directories.append(str(directory))
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.add_(torch.randn_like(parameter) * 0.05)
        return directories

    return make
