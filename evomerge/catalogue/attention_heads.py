"""The attention heads of a model by its config, for models whose tensor names do not tell their size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class AttentionHeads:
    """The heads of queries in every layer.

    Attributes:
        count: number of heads.
        size: dimensions of one.
    """

    count: int
    size: int


def attention_heads(settings: Mapping[str, Any]) -> AttentionHeads | None:
    """The heads of a model, or None where they may differ or have a place of their own.

    Args:
        settings: the content of config.json; of a model with several towers the language model counts.
    """
    inner = settings.get("text_config")
    config = inner if isinstance(inner, Mapping) else settings
    if config.get("alibi") or config.get("position_embedding_type") == "alibi":
        return None  # a head's bias depends on its index
    if config.get("num_kv_shared_layers"):
        return None  # heads of several layers would have to move together
    count = _number(config, "num_attention_heads", "n_head", "num_heads")
    # A dictionary of settings has the names that a class stores, not those that its `attribute_map` translates.
    size = _number(config, "head_dim", "attention_head_dim", "kv_channels")
    width = _number(config, "hidden_size", "n_embd", "d_model")
    if size is None and count and width and width % count == 0:
        size = width // count
    return AttentionHeads(count=count, size=size) if count and size else None


def _number(config: Mapping[str, Any], *names: str) -> int | None:
    """The first of the names that is a positive integer."""
    values = (config.get(name) for name in names)
    return next((value for value in values if type(value) is int and value > 0), None)
