"""Small random models and LoRA adapters of them, made and saved by transformers and PEFT."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedModel

from evomerge.checkpoints import open_source
from evomerge.checkpoints.source import Source
from evomerge.recipe import ModelRef

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def save_base(folder: Path, kind: str = "llama", *, dtype: torch.dtype = torch.float32, **over: Any) -> Path:
    """A random model of a kind in a folder."""
    if kind == "gpt2":
        config: Any = GPT2Config(
            **{"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64} | over
        )
    else:
        config = LlamaConfig(**SIZES | over)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    return folder


def save_adapter(
    base: Path, folder: Path, *, seed: int = 0, tokens: int | None = None, size: float = 0.1, **settings: Any
) -> Path:
    """A random adapter of a model in a folder, as PEFT saves it.

    Args:
        tokens: what the embeddings are resized to before.
        size: standard deviation of the numbers that are added to its parameters.
    """
    model = _load(base)
    if tokens is not None:
        model.resize_token_embeddings(tokens, mean_resizing=False)
    given: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]} | settings
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        adapted = get_peft_model(model, LoraConfig(**given))
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * size)
        adapted.save_pretrained(folder)
    return folder


def load_with_peft(base: Path, *adapters: Path, tokens: int | None = None) -> PeftModel:
    """The model with these adapters, named by their folders."""
    model = _load(base)
    if tokens is not None:
        model.resize_token_embeddings(tokens, mean_resizing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = PeftModel.from_pretrained(model, str(adapters[0]), adapter_name=adapters[0].name)
        for adapter in adapters[1:]:
            loaded.load_adapter(str(adapter), adapter_name=adapter.name)
    return loaded


def merged_by_peft(base: Path, adapter: Path, *, tokens: int | None = None) -> dict[str, torch.Tensor]:
    """The tensors of PEFT's merge, by their live names."""
    return dict(load_with_peft(base, adapter, tokens=tokens).merge_and_unload().state_dict())


def open_base(folder: Path) -> Source:
    return open_source(ModelRef("base", str(folder)))


def _load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder)
    return model
