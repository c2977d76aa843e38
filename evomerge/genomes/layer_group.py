"""Consecutive layers that are merged by one method, as the reference genomes decode them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.errors import InvalidInput

__all__ = ["LayerGroup", "slerp_pair", "slerp_share"]


@dataclass(frozen=True, kw_only=True)
class LayerGroup:
    """A group of layers with its method.

    Attributes:
        layers: (first layer, layer after the last one).
        method: a merge method.
        sources: names of the models that are merged; values per source are in this order.
        parameters: part of the model -> parameter -> value.
    """

    layers: tuple[int, int]
    method: str
    sources: list[str]
    parameters: dict[str, dict[str, Any]]


def slerp_pair(scores: Sequence[float]) -> tuple[int, int]:
    """Positions of the two largest scores, the larger first; of equal ones the earlier.

    Raises:
        InvalidInput: fewer than two scores.
    """
    if len(scores) < 2:
        raise InvalidInput(f"slerp merges two sources, but there is {len(scores)}; give another one or another method")
    first, second, *_ = sorted(range(len(scores)), key=lambda position: -scores[position])
    return first, second


def slerp_share(first: float, second: float) -> float:
    """t = exp(s2) / (exp(s1) + exp(s2)), the share of the second source, without overflow."""
    if first >= second:
        ratio = math.exp(second - first)
        return ratio / (1 + ratio)
    return 1 / (1 + math.exp(first - second))
