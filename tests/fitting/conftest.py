"""Tiny models of words whose vocabularies, heads and biases differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, LlamaConfig, LlamaForCausalLM

from evomerge.recipe import ModelRef


def _part_of_gemma(config: LlamaConfig) -> Gemma3ForConditionalGeneration:
    """A model whose config of the text, with the size of the vocabulary, is a part of the whole one."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": config.vocab_size, "num_key_value_heads": 1, "head_dim": 4, "pad_token_id": 0}
    vision = {**sizes, "image_size": 16, "patch_size": 8}
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4))


@pytest.fixture
def make_ref(tmp_path: Path) -> Callable[..., ModelRef]:
    """make_ref(name, tokens, rows=..., tied=..., nested=..., tokenizer=..., missing=...) and so on -> a model."""

    def make(
        name: str,
        tokens: Sequence[str],
        *,
        rows: int | None = None,
        tied: bool = False,
        bias: bool = False,
        added: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
        nested: bool = False,
        tokenizer: str | None = None,
        missing: str | None = None,
    ) -> ModelRef:
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = LlamaConfig(
            vocab_size=rows or len(tokens) + len(added),
            tie_word_embeddings=tied,
            mlp_bias=bias,
            max_position_embeddings=32,
            **sizes,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(sum(map(ord, name)))
            model = (_part_of_gemma(config) if nested else LlamaForCausalLM(config)).to(dtype)
        folder = tmp_path / name
        model.save_pretrained(folder)
        words = WordLevel({token: number for number, token in enumerate(tokens)}, unk_token=tokens[0])
        written = Tokenizer(words)
        written.add_special_tokens(list(added))
        written.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
        return ModelRef(name, str(folder), tokenizer=tokenizer, missing=missing)

    return make
