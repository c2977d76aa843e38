"""Keyed permutations: the place of each element is computed from its index, so that none is stored.

The key is (seed, source position, tensor name), as for masks, and any division of the tensor into slices gives the same
permutation on every device. A Feistel network is a bijection whatever its round function (Luby and Rackoff 1988): the
index is cut into two halves of h bits, and in each round

    left, right = right, left ^ F(right)         (1)

with F the hash of `masks` under a key of the round. Its domain is the next power of 4 from the size of the tensor on:
an index that falls beyond the tensor is sent on until it does not (cycle walking, Black and Rogaway 2002), which leaves
a bijection of the tensor's own indices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.seeding import derive
from evomerge.tensors.masks import index_words, mixed_index

ROUNDS = 6


@dataclass(frozen=True)
class KeyedPermutation:
    """A permutation of the elements of a flattened tensor.

    Attributes:
        keys: one of 64 bits for each round.
        elements: of the tensor, at most 2**48.
    """

    keys: tuple[int, ...]
    elements: int

    def origins(self, start: int, stop: int, device: torch.device | str = "cpu") -> Tensor:
        """The indices, int64 of shape `(stop - start,)`, of the elements that come to the places `[start, stop)`."""
        found = self._rounds(torch.arange(start, stop, dtype=torch.int64, device=device))
        while bool((beyond := found >= self.elements).any()):
            found[beyond] = self._rounds(found[beyond])
        return found

    def _rounds(self, index: Tensor) -> Tensor:
        half = max(1, -(-(self.elements - 1).bit_length() // 2))
        low = (1 << half) - 1
        left, right = index >> half, index & low
        for key in self.keys:
            key_low, key_high, _ = index_words(key, 0)
            mixed = mixed_index(right.to(torch.int32), key_low, key_high)
            left, right = right, left ^ (mixed.to(torch.int64) & low)  # (1)
        return left << half | right


def permutation(seed: int, source: int, name: str, elements: int) -> KeyedPermutation:
    """The permutation of one tensor of one source."""
    keys = (derive(seed, "permutation", source, name, number) for number in range(ROUNDS))
    return KeyedPermutation(tuple(keys), elements)
