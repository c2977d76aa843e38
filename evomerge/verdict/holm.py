"""Holm's correction (Holm 1979): the level bounds the chance of a single false win in all comparisons together."""

from __future__ import annotations

from collections.abc import Sequence


def multipliers(p_values: Sequence[float]) -> list[int]:
    """Holm's multiplier of each p-value: m for the smallest of m, 1 for the largest."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    factors = [0] * len(p_values)
    for place, index in enumerate(order):
        factors[index] = len(p_values) - place
    return factors


def adjust(p_values: Sequence[float]) -> list[float]:
    """The adjusted p-values, in the order given: Holm's procedure rejects at a level the ones below it."""
    adjusted, factors = [0.0] * len(p_values), multipliers(p_values)
    highest = 0.0
    for index in sorted(range(len(p_values)), key=lambda index: p_values[index]):
        highest = max(highest, min(1.0, p_values[index] * factors[index]))
        adjusted[index] = highest
    return adjusted
