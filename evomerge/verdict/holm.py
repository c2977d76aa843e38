"""Holm's correction (Holm 1979): one false win in all comparisons together is as rare as the level says."""

from __future__ import annotations

from collections.abc import Sequence


def ranks(p_values: Sequence[float]) -> list[int]:
    """How many comparisons each p-value has to hold against: all for the smallest, one for the largest."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    held = [0] * len(p_values)
    for place, index in enumerate(order):
        held[index] = len(p_values) - place
    return held


def adjust(p_values: Sequence[float]) -> list[float]:
    """The adjusted p-values, in the order given: below the level is what Holm's procedure rejects at that level."""
    adjusted, held = [0.0] * len(p_values), ranks(p_values)
    highest = 0.0
    for index in sorted(range(len(p_values)), key=lambda index: p_values[index]):
        highest = max(highest, min(1.0, p_values[index] * held[index]))
        adjusted[index] = highest
    return adjusted
