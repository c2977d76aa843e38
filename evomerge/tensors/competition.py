"""The competition of PCB as one formula, with the same bits eagerly and compiled."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from evomerge.tensors.elementary import hyperbolic_tangent, power_of_two, tangent_up_to_one
from evomerge.tensors.formula_numbers import Numbers
from evomerge.tensors.sums import added

LOG2_E = 1.4426950408889634
_MOST_UNSHIFTED = 64


def compete(variant: str, vectors: Sequence[Tensor], numbers: Tensor) -> Tensor:
    """The balanced sum of `pcb.balanced_sum`."""
    least, scale, zero = numbers[Numbers.LEAST], numbers[Numbers.SCALE], numbers[Numbers.ZERO, 0]
    clipped = [_clip(vector.abs(), least[i], numbers[Numbers.MOST, i]) for i, vector in enumerate(vectors)]
    scaled = [(size - least[i]) * scale[i] for i, size in enumerate(clipped)]
    scores = []
    for i, between in enumerate(_rivalry(variant, vectors, scaled, zero)):
        beta = competition_within(scaled[i], len(vectors)) * between
        lost = numbers[Numbers.LEAST_SCORE, i]
        scores.append((beta - lost).relu() * numbers[Numbers.SCORE_SCALE, i])  # what is below the range becomes 0
    divisor = added(scores)
    merged = added(
        [score * _signed(clipped[i], vectors[i], zero) * numbers[Numbers.WEIGHT, i] for i, score in enumerate(scores)]
    )
    return (merged + 0.0) / torch.where(divisor < 1e-12, 1e-12, divisor)


def competition_within(scaled: Tensor, n: int) -> Tensor:
    """exp(n mm^2) of n sources, up to a factor that is the same for all elements."""
    exponent = scaled.square().mul_(n * LOG2_E)
    if n <= _MOST_UNSHIFTED:
        return power_of_two(exponent)
    # exp(89) is more than float32 holds.
    exponent = exponent - (n - _MOST_UNSHIFTED) * LOG2_E
    return power_of_two(torch.where(exponent < -126.0, -126.0, exponent))


def _clip(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.where(values < low, low, torch.where(values > high, high, values))


def _signed(sizes: Tensor, vector: Tensor, zero: Tensor) -> Tensor:
    """The sizes times sign(vector)."""
    return torch.where(vector > zero, sizes, torch.where(vector < zero, -sizes, zero))


def _rivalry(variant: str, vectors: Sequence[Tensor], scaled: Sequence[Tensor], zero: Tensor) -> list[Tensor]:
    """inter_i of each source, in the variants of `pcb`."""
    if variant in ("main", "nlp"):
        total = added(vectors)
        return [hyperbolic_tangent(vector * total) for vector in vectors]
    signed = [_signed(size, vector, zero) for size, vector in zip(scaled, vectors, strict=True)]
    if variant == "vision":
        total = added(signed)
        return [hyperbolic_tangent(vector * total) for vector in vectors]
    sums: list[list[Tensor]] = [[] for _ in signed]
    for i, j in combinations_with_replacement(range(len(signed)), 2):
        rivalry = tangent_up_to_one(signed[i] * signed[j])
        for each in {i, j}:
            sums[each].append(rivalry)
    return [added(each) for each in sums]
