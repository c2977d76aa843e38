"""The size of an attention head by a model's config, for models whose tensor names do not tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def head_size(settings: Mapping[str, Any]) -> int | None:
    """Dimensions of an attention head, or None where heads may differ or have a place of their own.

    Args:
        settings: the content of config.json; of a model with several towers the language model counts.
    """
    inner = settings.get("text_config")
    config = inner if isinstance(inner, Mapping) else settings
    if config.get("alibi") or config.get("position_embedding_type") == "alibi":
        return None  # a head's bias depends on its index
    if config.get("num_kv_shared_layers"):
        return None  # heads of several layers would have to move together
    heads = _number(config, "num_attention_heads", "n_head", "num_heads")
    size = _number(config, "head_dim")
    width = _number(config, "hidden_size", "n_embd", "d_model")
    if size is None and heads and width and width % heads == 0:
        size = width // heads
    return size


def _number(config: Mapping[str, Any], *names: str) -> int | None:
    """The first of the names that is a positive integer."""
    values = (config.get(name) for name in names)
    return next((value for value in values if type(value) is int and value > 0), None)
