"""The numbers and words of formulas as tensors, of the factors that Python has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from evomerge.tensors.dropping import Drop
from evomerge.tensors.formula_numbers import Numbers, Words
from evomerge.tensors.masks import index_words
from evomerge.tensors.plans import Factors

EVERYWHERE = (1 << 31) - 1  # a piece has no more elements


def pack(
    tensors: Sequence[Sequence[Factors]], scale: float = 1.0, zero_sign: float = 1.0, *, wide: bool = False
) -> tuple[Tensor, Tensor]:
    """`numbers` and `words` of several tensors, with one more dimension in front.

    Args:
        tensors: the factors of each tensor, one per source.
        wide: numbers in float64.

    Returns:
        float32 or float64 of shape (tensors, 13, sources) and int32 of shape (tensors, 6, sources), for the elements
        from index 0; `offset_words` gives the words of later ones.
    """
    undropped = Drop(0, 0.0)
    # By way of numpy, which reads nested lists several times faster.
    with np.errstate(over="ignore"):  # what is above the largest float32 is infinite, and refused when it is written
        numbers = np.array([_numbers(factors, undropped, scale, zero_sign) for factors in tensors])
        numbers = numbers.astype(np.float64 if wide else np.float32)
        above = np.nextafter(numbers[:, Numbers.THRESHOLD : Numbers.THRESHOLD + 1], numbers.dtype.type(np.inf))
        numbers = np.concatenate([numbers, above], axis=1)
    words = np.zeros((len(tensors), len(Words), numbers.shape[-1]), dtype=np.int32)
    words[:, Words.TIES :] = EVERYWHERE
    if any(_has_words(factors) for factors in tensors):
        words[:] = [_words(factors, undropped) for factors in tensors]
    return torch.from_numpy(numbers), torch.from_numpy(words)


def _numbers(factors: Sequence[Factors], undropped: Drop, scale: float, zero_sign: float) -> list[Sequence[float]]:
    drops = [factor.drop or undropped for factor in factors]
    return [
        [factor.weight for factor in factors],
        [factor.threshold for factor in factors],
        [drop.divisor for drop in drops],
        [drop.factor for drop in drops],
        [scale] * len(factors),
        [zero_sign] * len(factors),
        [0.0] * len(factors),
        *zip(*(factor.ranges for factor in factors), strict=True),
    ]


def _words(factors: Sequence[Factors], undropped: Drop) -> list[list[int]]:
    drops = [factor.drop or undropped for factor in factors]
    keys = [index_words(drop.key, 0) for drop in drops]
    limits = [math.ceil(drop.drop_rate * (1 << 24)) for drop in drops]
    rows = [[low for low, _, _ in keys], [high for _, high, _ in keys], [start for _, _, start in keys]]
    return [limits, *rows, *_ties_left(factors, 0)]


def _has_words(factors: Sequence[Factors]) -> bool:
    return any(each.drop or each.ties is not None or each.ties_of_most is not None for each in factors)


def _ties_left(factors: Sequence[Factors], start: int) -> list[list[int]]:
    """`Words.TIES` and `Words.TIES_OF_MOST` of a piece that begins at an element."""

    def left(end: int | None) -> int:
        return EVERYWHERE if end is None else min(max(end - start, 0), EVERYWHERE)

    return [[left(each.ties) for each in factors], [left(each.ties_of_most) for each in factors]]


def offset_words(words: Tensor, factors: Sequence[Factors], start: int) -> Tensor:
    """The words for a piece that begins at element `start`. A piece may not cross a multiple of 2**31."""
    if start == 0 or not _has_words(factors):
        return words
    keys = [index_words(factor.drop.key if factor.drop else 0, start) for factor in factors]
    rows = [[low for low, _, _ in keys], [high for _, high, _ in keys], [first for _, _, first in keys]]
    rows += _ties_left(factors, start)
    return torch.cat([words[: Words.KEY_LOW], torch.tensor(rows, dtype=torch.int32, device=words.device)])
