"""Elementwise methods as formulas: what one pass over memory computes for each element, as plain functions on tensors.

The functions of the other files are the definitions and go through the tensors operation by operation. The formulas
here do the same operations on the same operands in the same order, so that the bits are the same; a test holds that for
every option. What differs is the form: no operation in place, no Python number that changes between candidates, so that
a compiler makes one loop of a whole formula and never has to make it again. Weights, thresholds and keys come in two
small tensors, see `Numbers` and `Words`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from evomerge.merging.dare import Drop
from evomerge.merging.masks import index_words, mixed_index


class Numbers(IntEnum):
    """Rows of the float32 tensor `numbers` of shape (6, sources). What all sources share stands in each column."""

    WEIGHT = 0
    THRESHOLD = 1  # smaller magnitudes are trimmed
    DIVISOR = 2  # of what DARE leaves
    FACTOR = 3  # of what DARE leaves, after the division
    LAMBDA = 4
    ZERO_SIGN = 5  # the sign of an exactly zero sum


class Words(IntEnum):
    """Rows of the int32 tensor `words` of shape (4, sources), for the masks of DARE; see `masks`."""

    LIMIT = 0  # random bits below it mean dropped
    KEY_LOW = 1
    KEY_HIGH = 2
    START = 3  # low word of the index of the first element


@dataclass(frozen=True)
class Formula:
    """What is fixed when a formula is compiled.

    Attributes:
        kind: `average` of the sources, `sum` of task vectors on the base, or `election` (TIES).
        drops: DARE masks the task vectors first.
        elect, agg, weighting: the options of TIES.
        by_majority: the sign of a zero sum is the majority's, so that the votes are handed out to be counted.
    """

    kind: str
    drops: bool = False
    elect: str = ""
    agg: str = ""
    weighting: str = ""
    by_majority: bool = False

    @property
    def has_base(self) -> bool:
        return self.kind != "average"


@dataclass(frozen=True)
class Factors:
    """The numbers of one tensor of one source, as Python has them."""

    weight: float = 1.0
    threshold: float = 0.0
    drop: Drop | None = None


def pack(tensors: Sequence[Sequence[Factors]], scale: float = 1.0, zero_sign: float = 1.0) -> tuple[Tensor, Tensor]:
    """`numbers` and `words` of several tensors, with one more dimension in front.

    Args:
        tensors: the factors of each tensor, one per source.

    Returns:
        float32 of shape (tensors, 6, sources) and int32 of shape (tensors, 4, sources), for the elements from index 0;
        `moved` gives the words of later ones.
    """
    undropped = Drop(0, 0.0)
    numbers = torch.tensor([_numbers(factors, undropped, scale, zero_sign) for factors in tensors], dtype=torch.float32)
    if not any(factor.drop for factors in tensors for factor in factors):
        return numbers, torch.zeros((len(tensors), len(Words), numbers.shape[-1]), dtype=torch.int32)
    return numbers, torch.tensor([_words(factors, undropped) for factors in tensors], dtype=torch.int32)


def _numbers(factors: Sequence[Factors], undropped: Drop, scale: float, zero_sign: float) -> list[list[float]]:
    drops = [factor.drop or undropped for factor in factors]
    return [
        [factor.weight for factor in factors],
        [factor.threshold for factor in factors],
        [drop.divisor for drop in drops],
        [drop.factor for drop in drops],
        [scale] * len(factors),
        [zero_sign] * len(factors),
    ]


def _words(factors: Sequence[Factors], undropped: Drop) -> list[list[int]]:
    drops = [factor.drop or undropped for factor in factors]
    keys = [index_words(drop.key, 0) for drop in drops]
    limits = [math.ceil(drop.drop_rate * (1 << 24)) for drop in drops]
    return [limits, [low for low, _, _ in keys], [high for _, high, _ in keys], [start for _, _, start in keys]]


def moved(words: Tensor, factors: Sequence[Factors], start: int) -> Tensor:
    """The words for a piece that begins at element `start`. A piece may not cross a multiple of 2**31."""
    if start == 0 or not any(factor.drop for factor in factors):
        return words
    keys = [index_words(factor.drop.key if factor.drop else 0, start) for factor in factors]
    rows = [[low for low, _, _ in keys], [high for _, high, _ in keys], [first for _, _, first in keys]]
    return torch.cat([words[: Words.KEY_LOW], torch.tensor(rows, dtype=torch.int32, device=words.device)])


def evaluate(
    formula: Formula, base: Tensor | None, sources: Sequence[Tensor], numbers: Tensor, words: Tensor
) -> tuple[Tensor, Tensor | None]:
    """One piece of the merged tensor.

    Args:
        base, sources: the same piece of one flattened tensor of each model, shape (n,), any float dtype up to float32.
        numbers: float32 of shape (6, sources), see `Numbers`.
        words: int32 of shape (4, sources), see `Words`.

    Returns:
        float32 of shape (n,), and for formulas `by_majority` the votes: the sign of each elected sum, -1, 0 or +1.
    """
    if base is None:
        return _weighted_sum([source.float() for source in sources], numbers), None
    origin = base.float()
    vectors = [source.float() - origin for source in sources]
    if formula.drops:
        vectors = [_drop(vector, numbers[:, i], words[:, i]) for i, vector in enumerate(vectors)]
    if formula.kind == "sum":
        return _weighted_sum(vectors, numbers) + origin, None
    merged, votes = _elect(formula, vectors, numbers)
    return merged * numbers[Numbers.LAMBDA, 0] + 0.0 + origin, votes if formula.by_majority else None


def _weighted_sum(tensors: Sequence[Tensor], numbers: Tensor) -> Tensor:
    return _sum([tensor * numbers[Numbers.WEIGHT, i] for i, tensor in enumerate(tensors)])


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


def _drop(vector: Tensor, numbers: Tensor, words: Tensor) -> Tensor:
    """What `dare.Drop` does; the limit 0 drops nothing."""
    indices = torch.arange(vector.shape[0], dtype=torch.int32, device=vector.device) + words[Words.START]
    bits = mixed_index(indices, words[Words.KEY_LOW], words[Words.KEY_HIGH])
    kept = torch.where(bits < words[Words.LIMIT], 0.0, 1.0)
    return vector * kept / numbers[Numbers.DIVISOR] * numbers[Numbers.FACTOR]


def _elect(formula: Formula, vectors: Sequence[Tensor], numbers: Tensor) -> tuple[Tensor, Tensor]:
    """What `ties.Election` does, for task vectors that are not trimmed yet. NaN anywhere gives NaN."""
    weights = numbers[Numbers.WEIGHT]
    trimmed = [
        torch.where(vector.abs() < numbers[Numbers.THRESHOLD, i], 0.0, vector) * weights[i]
        for i, vector in enumerate(vectors)
    ]
    total = mass = _sum(trimmed)
    if formula.elect == "count":
        total = _sum([torch.where(each < 0, -1.0, torch.where(each > 0, 1.0, 0.0)) for each in trimmed])
    votes = torch.where(total < 0, -1.0, torch.where(total > 0, 1.0, total))
    sign = torch.where(votes == 0, numbers[Numbers.ZERO_SIGN, 0], votes)
    if formula.elect == "count":
        sign = torch.where(mass == mass, sign, mass)  # counting lost the NaN
    sized = [each * sign for each in trimmed]
    agreeing = [each > 0 for each in sized]
    kept = [torch.where(agrees, each, 0.0) for agrees, each in zip(agreeing, sized, strict=True)]
    if formula.agg == "dis-max":
        merged = kept[0]
        for each in kept[1:]:
            merged = torch.where(each > merged, each, merged)
        return merged * sign, votes
    merged = _sum(kept)
    if formula.agg == "dis-mean" and formula.weighting == "count":
        count = _sum([torch.where(agrees, 1.0, 0.0) for agrees in agreeing])
        merged = merged / torch.where(count > 1, count, 1.0)
    elif formula.agg == "dis-mean" and formula.weighting == "norm":
        divisor = _sum([torch.where(agrees, weights[i], 0.0) for i, agrees in enumerate(agreeing)])
        merged = merged / torch.where(divisor.abs() < 1e-8, 1.0, divisor)
    return merged * sign, votes
