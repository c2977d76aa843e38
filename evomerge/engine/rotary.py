"""Rotary position embeddings whose frequencies follow the longest sequence of a batch (`dynamic`, `longrope`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def changes_within(config: Any, shortest: int, longest: int) -> bool:
    """Whether sequences of these lengths, in tokens, are rotated otherwise together than each by itself.

    Dynamic NTK scaling has other frequencies for every length beyond the original one; LongRoPE has two sets, one for
    sequences up to the original length and one for longer ones.

    Args:
        config: of the text model.
    """
    return any(
        longest > original and (kind == "dynamic" or shortest <= original) for kind, original in _changing(config)
    )


def _changing(config: Any) -> Iterator[tuple[str, int]]:
    """Kind and original length of each set of rotary embeddings that follows the batch."""
    rotary = getattr(config, "rope_parameters", None) or {}
    for settings in (rotary, *(value for value in rotary.values() if isinstance(value, Mapping))):
        kind = str(settings.get("rope_type", "default"))
        if kind in ("dynamic", "longrope"):
            original = settings.get("original_max_position_embeddings") or config.max_position_embeddings
            yield kind, int(original)
