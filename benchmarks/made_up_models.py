"""Randomly initialised models, which are as fast or slow as trained ones, with the characters of the toy models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

TOY = Path(__file__).parent.parent / "examples" / "toy" / "models" / "base"

SIZES: dict[str, dict[str, int]] = {
    "toy": {
        "vocab_size": 100,
        "hidden_size": 96,
        "intermediate_size": 224,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
    },
    "100m": {
        "vocab_size": 32_000,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
}


def make_model(size: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A Llama of this size, of up to 2048 tokens, that ends its texts at the toy models' token."""
    config = LlamaConfig(
        **SIZES[size],
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).to(dtype).eval()


def toy_tokenizer() -> Any:
    """One token per character."""
    return AutoTokenizer.from_pretrained(TOY)


def save_model(folder: Path, size: str, *, seed: int, dtype: torch.dtype) -> Path:
    """Write a model directory with weights and tokenizer."""
    make_model(size, seed=seed, dtype=dtype).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder
