"""Keyed permutations: the place of each element is computed from its index, so that none is stored.

The key is (seed, source position, tensor name), as for masks, and any division of the tensor into slices gives the same
permutation on every device. With a * b places, a and b near the root of the size, an index is
(left, right) = divmod(index, b), and rounds in turn add to one part what a hash F makes of the other:

    left = (left + F(right)) mod a               (1)
    right = (right + F(left)) mod b              (2)

Each is a bijection whatever F is, a generalised Feistel network (Black and Rogaway 2002). The few indices that end
beyond the tensor go through all rounds again until they do not (cycle walking), which leaves a bijection of the
tensor's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.seeding import derive
from evomerge.tensors.masks import mixed_word

ROUNDS = 4
_NARROW = 1 << 30  # elements up to which indices, and a * b, are counted in int32


@dataclass(frozen=True)
class KeyedPermutation:
    """A permutation of the elements of a flattened tensor.

    Attributes:
        keys: one of 32 bits for each round.
        elements: of the tensor, at most 2**48.
    """

    keys: tuple[int, ...]
    elements: int

    def origins(self, start: int, stop: int, device: torch.device | str = "cpu") -> Tensor:
        """The indices, int64 of shape `(stop - start,)`, of the elements that come to the places `[start, stop)`."""
        dtype = torch.int32 if self.elements <= _NARROW else torch.int64
        found = self._rounds(torch.arange(start, stop, dtype=dtype, device=device))
        while bool((beyond := found >= self.elements).any()):
            found[beyond] = self._rounds(found[beyond])
        return found.to(torch.int64)

    def _rounds(self, index: Tensor) -> Tensor:
        rows = math.isqrt(self.elements - 1) + 1
        columns = -(-self.elements // rows)
        left, right = index // columns, index % columns
        for number, key in enumerate(self.keys):
            if number % 2:
                right = (right + _hashed(left, key)) % columns  # (2)
            else:
                left = (left + _hashed(right, key)) % rows  # (1)
        return left * columns + right


def permutation(seed: int, source: int, name: str, elements: int) -> KeyedPermutation:
    """The permutation of one tensor of one source."""
    keys = (derive(seed, "permutation", source, name, number) % (1 << 32) for number in range(ROUNDS))
    return KeyedPermutation(tuple(keys), elements)


def _hashed(part: Tensor, key: int) -> Tensor:
    """F: 24 random bits of each element, in its dtype."""
    return mixed_word(part.to(torch.int32), key).to(part.dtype)
