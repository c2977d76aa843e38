"""Toy models for merges by two programs: a base and three experts, tied and untied, in one file and in several."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from made_up_models import toy_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

NAMES = ("base", "one", "two", "three")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Models of one kind.

    Attributes:
        stored: dtype of the models, by name.
        written: dtype of the merge.
        sharded: whether a model is several files.
        size: factor of all weights and of the changes of experts, which have a standard deviation of 2e-3 at 1. Where a
            program has bounds of its own for small task vectors, changes as those of fine-tunes come below them; the
            weights are as small, so that a step of bfloat16 remains small beside the changes.
        uneven: the second expert changes twice as much as the first one, the third one three times.
    """

    stored: str
    written: str
    tied: bool
    sharded: bool
    size: float = 1.0
    uneven: bool = False


KINDS = {
    "bfloat16, tied": Kind(stored="bfloat16", written="bfloat16", tied=True, sharded=False),
    "bfloat16, untied, shards": Kind(stored="bfloat16", written="bfloat16", tied=False, sharded=True),
    "float32, tied, shards": Kind(stored="float32", written="float32", tied=True, sharded=True),
    "float32 to bfloat16, untied": Kind(stored="float32", written="bfloat16", tied=False, sharded=False),
    "float32, changes of 1e-4": Kind(
        stored="float32", written="float32", tied=False, sharded=False, size=0.05, uneven=True
    ),
    "float32, changes of 1e-5": Kind(
        stored="float32", written="float32", tied=False, sharded=False, size=0.005, uneven=True
    ),
}


def make_models(folder: Path, kind: Kind) -> None:
    """A directory for each model. Experts are the base with small changes, in some tensors of a part of the elements
    only."""
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=kind.tied,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        start = {name: tensor.clone() for name, tensor in model.named_parameters()}
        for seed, name in enumerate(NAMES):
            torch.manual_seed(seed)
            for key, tensor in model.named_parameters():
                made = start[key]
                if name != "base":
                    made = made + (seed if kind.uneven else 1) * _change(tensor, sparse="gate" in key)
                tensor.data.copy_(kind.size * made)
            save(model, folder / name, kind)


def _change(tensor: torch.Tensor, *, sparse: bool) -> torch.Tensor:
    change = 2e-3 * torch.randn_like(tensor)
    return change * (torch.rand_like(tensor) < 0.3) if sparse else change


def save(model: LlamaForCausalLM, folder: Path, kind: Kind) -> None:
    shards = {"max_shard_size": "150KB"} if kind.sharded else {}
    copy.deepcopy(model).to(getattr(torch, kind.stored)).save_pretrained(folder, **shards)
    toy_tokenizer().save_pretrained(folder)
