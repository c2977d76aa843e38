"""Counter-based Bernoulli masks: whether an element is dropped is a short hash of what the draw is for.

The key is (seed, source position, tensor name) and the counter is the element's 64-bit index, so that a mask is the
same on every device, with any number of threads, in any tensor order and for any division of the tensor into slices.
Nothing is stored and no generator has a state.

The hash runs on 32-bit integers. With `mix` a bijective finaliser of xor-shifts and odd multipliers (that of Wellons,
"lowbias32", whose bias is near the limit for two multiplications):

    x = mix(low ^ key_low)                       (1)
    x = mix(x ^ key_high ^ high * 0x9E3779B9)    (2)
    u = (x >> 8) * 2**-24                        (3)
    dropped where u < p                          (4)
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from evomerge.seeding import derive

_WORD = 1 << 32
_HALF_WORD = 1 << 31


@lru_cache(maxsize=1 << 16)  # every candidate asks for all of them
def mask_key(seed: int, source: int, name: str) -> int:
    """The 64-bit key of all masks of one tensor of one source."""
    return derive(seed, source, name)


def dropped(key: int, start: int, stop: int, drop_rate: float, *, device: torch.device | str = "cpu") -> Tensor:
    """The mask of the slice `[start, stop)` of a flattened tensor.

    Returns:
        Boolean tensor of shape `(stop - start,)`, true with probability `drop_rate` (in steps of 2**-24, rounded up).
    """
    # (4) in integers: u * 2**24 is one, and the product p * 2**24 is exact.
    return uniform_bits(key, start, stop, device) < math.ceil(drop_rate * (1 << 24))


def uniform_bits(key: int, start: int, stop: int, device: torch.device | str = "cpu") -> Tensor:
    """24 random bits for each element of the slice `[start, stop)`: int32 of shape `(stop - start,)`."""
    parts = []
    while start < stop:
        # Within one part the index's high word is a constant, and int32 can count the elements.
        end = min(stop, (start // _HALF_WORD + 1) * _HALF_WORD)
        parts.append(_uniform_bits(key, start, end, device))
        start = end
    if not parts:
        return torch.empty(0, dtype=torch.int32, device=device)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def index_words(key: int, start: int) -> tuple[int, int, int]:
    """The int32 words that the hash takes for elements from `start` on: key_low, key_high with the index's high word
    mixed in, and the index's low word. They hold up to the next multiple of 2**31."""
    high, low = divmod(start, _WORD)
    key_high, key_low = divmod(key, _WORD)
    return _signed(key_low), _signed(key_high ^ (high * 0x9E3779B9) % _WORD), _signed(low)  # the constants of (2)


def mixed_index(low: Tensor, key_low: Tensor | int, key_high: Tensor | int) -> Tensor:
    """The hash: 24 random bits of each element from the low word of its index. All int32."""
    x = _mixed(low ^ key_low)  # (1)
    x = _mixed(x ^ key_high)  # (2), with the index's high word already in key_high
    return _shifted(x, 8)  # (3), times 2**24


def mixed_word(low: Tensor, key: int) -> Tensor:
    """A shorter hash: 24 bits of each element from its low word and 32 bits of a key, by (1) and (3) alone."""
    return _shifted(_mixed(low ^ _signed(key)), 8)


def _uniform_bits(key: int, start: int, stop: int, device: torch.device | str) -> Tensor:
    key_low, key_high, low = index_words(key, start)
    return mixed_index(torch.arange(stop - start, dtype=torch.int32, device=device) + low, key_low, key_high)


def _mixed(x: Tensor) -> Tensor:
    """The finaliser. Products wrap modulo 2**32, which is what two's complement int32 does."""
    x = (x ^ _shifted(x, 16)) * _signed(0x7FEB352D)
    x = (x ^ _shifted(x, 15)) * _signed(0x846CA68B)
    return x ^ _shifted(x, 16)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's `>>` on int32 copies the sign bit in."""
    return (x >> bits) & ((1 << (32 - bits)) - 1)


def _signed(word: int) -> int:
    """The int32 with the bits of an unsigned 32-bit word."""
    return word - _WORD if word >= _HALF_WORD else word
