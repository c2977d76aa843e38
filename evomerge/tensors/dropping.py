"""Dropping of elements of task vectors at random, by the parameter `drop_rate` and the options of DARE."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from evomerge.tensors.masks import dropped, mask_key, uniform_bits
from evomerge.tensors.rule_tensors import RuleTensors
from evomerge.tensors.vector_norms import Mask, masked_vector_norm, whole_norm

# Elements of pieces whose random bits are kept: every candidate counts the survivors of small tensors, and half of what
# that costs is drawing them again.
KEPT = 1 << 13


@dataclass(frozen=True)
class Drop:
    """The change of one tensor of one source's task vector:

        t = tau (1 - m) / divisor * factor        (1)
        m ~ Bernoulli(drop_rate)                  (2) by element, see `masks`

    Divisor and factor are apart because the quotient that restores an L1 norm may exceed the largest float32.
    """

    key: int
    drop_rate: float
    divisor: float = 1.0
    factor: float = 1.0

    def __call__(self, start: int, task_vector: Tensor) -> Tensor:
        """Drop and rescale, in place, the piece of the flattened tensor that begins at element `start`."""
        mask = _mask(self.key, start, start + task_vector.numel(), self.drop_rate, task_vector.device)
        # (1), dropped before rescaling: an L1 quotient that suits the survivors may overflow on dropped elements.
        return self.rescale_(task_vector.mul_(mask.logical_not_()))

    def rescale_(self, values: Tensor) -> Tensor:
        if self.divisor != 1:
            values /= self.divisor
        if self.factor != 1:
            values *= self.factor
        return values


class Dropping:
    """The `Drop` of each tensor of each source, determined at first use."""

    def __init__(self, tensors: RuleTensors) -> None:
        self.rates = tensors.per_source("drop_rate")
        self.rescale = tensors.options["rescale"]
        self._tensors = tensors
        self._drops: dict[tuple[int, str], Drop | None] = {}

    def __call__(self, source: int, name: str) -> Drop | None:
        """None: the tensor is left as it is."""
        if (source, name) not in self._drops:
            self._drops[source, name] = self._drop(source, name) if self.concerns(source, name) else None
        return self._drops[source, name]

    def concerns(self, source: int, name: str) -> bool:
        targeted = self._tensors.options["targets"] == "all" or self._tensors.like(name).dim() == 2
        return self.rates[source] > 0 and targeted

    def _drop(self, source: int, name: str) -> Drop:
        key, rate = mask_key(self._tensors.seed, source, name), self.rates[source]
        plain = Drop(key, rate)
        if self.rescale == "none" or rate == 1:  # at rate 1 nothing survives that could be rescaled
            return plain
        if self.rescale == "1/(1-p)":
            return Drop(key, rate, divisor=1 - rate)
        left = masked_vector_norm(self._tensors, source, name, plain, Mask(key, rate))
        return Drop(key, rate, divisor=left, factor=whole_norm(self._tensors, source, name)) if left > 0 else plain


def _mask(key: int, start: int, stop: int, drop_rate: float, device: torch.device) -> Tensor:
    if device.type != "cpu" or stop - start > KEPT:
        return dropped(key, start, stop, drop_rate, device=device)
    return _kept_bits(key, start, stop) < math.ceil(drop_rate * (1 << 24))  # masks (4)


@lru_cache(maxsize=1 << 10)  # at most 32 MiB
def _kept_bits(key: int, start: int, stop: int) -> Tensor:
    return uniform_bits(key, start, stop)
