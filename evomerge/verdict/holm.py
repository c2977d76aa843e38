"""Holm's correction (Holm 1979), with a part of the error kept for statements of equivalence.

In a family of M comparisons, those of equivalence are all tested at 1 / (2 M) of the level, which is the tail of
Bonferroni's interval; the differences are tested step by step, the smallest p-value first. After r of them have been
found, the next one is tested at (1 − r / (2 M)) / (M − r) of the level. Without equivalence nothing is kept, and that
is 1 / (M − r), Holm's own.

The level bounds the chance of a single false statement, whatever the dependence. Let E be the comparisons whose true
difference is the margin or more, and Z those whose true difference is 0; they are disjoint. Each of E is falsely called
equivalent with a chance of at most 1 / (2 M) of the level. Until one of Z is falsely found different, at most
r = M − |Z| differences have been found, and each of Z is tested at no more than (M + |Z|) / (2 M |Z|). Together
|E| / (2 M) + (M + |Z|) / (2 M) ≤ 1, since |E| ≤ M − |Z|.
"""

from __future__ import annotations

from collections.abc import Sequence


def multipliers(p_values: Sequence[float], *, with_equivalence: bool = False) -> list[float]:
    """Multiplier of each p-value of a difference: of Holm's m for the smallest of m, 1 for the largest."""
    count = len(p_values)
    order = sorted(range(count), key=lambda index: p_values[index])
    factors = [0.0] * count
    for found, index in enumerate(order):
        kept = found / (2 * count) if with_equivalence else 0.0
        factors[index] = (count - found) / (1 - kept)
    return factors


def adjust(p_values: Sequence[float], *, with_equivalence: bool = False) -> list[float]:
    """The adjusted p-values of differences, in the order given: the procedure rejects at a level the ones below it."""
    adjusted, factors = [0.0] * len(p_values), multipliers(p_values, with_equivalence=with_equivalence)
    highest = 0.0
    for index in sorted(range(len(p_values)), key=lambda index: p_values[index]):
        highest = max(highest, min(1.0, p_values[index] * factors[index]))
        adjusted[index] = highest
    return adjusted


def adjust_equivalence(p: float, count: int) -> float:
    """The adjusted p-value of equivalence in a family of `count` comparisons."""
    return min(1.0, 2 * count * p)
