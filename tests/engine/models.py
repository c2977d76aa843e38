"""Tiny random models of many architectures, by the name of their configuration class."""

from __future__ import annotations

from typing import Any

import torch
import transformers

SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "initializer_range": 0.2, "pad_token_id": 0}
LLAMA |= {"bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
BERT = {**SMALL, "intermediate_size": 48, "initializer_range": 0.2, "pad_token_id": 0}


def dynamic(original: int) -> dict[str, Any]:
    """Settings of rotary embeddings that stretch beyond so many tokens."""
    rotary = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    return {"max_position_embeddings": original, "rope_parameters": rotary}


def longrope(original: int, size: int = 8) -> dict[str, Any]:
    """Settings of rotary embeddings with other frequencies beyond so many tokens; heads have `size` numbers."""
    factors = {"short_factor": [1.0] * (size // 2), "long_factor": [3.0] * (size // 2)}
    rotary = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": original, **factors}
    return {"max_position_embeddings": 4 * original, "rope_parameters": rotary}


def build(config: str, settings: dict[str, Any], seed: int = 0) -> Any:
    """The causal language model of a configuration, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**settings)).eval()
