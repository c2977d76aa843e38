"""Counter-based Bernoulli masks: whether an element is dropped is a short hash of what the draw is for.

The key is (seed, source position, tensor name) and the counter is the element's 64-bit index, so that a mask is the
same on every device, with any number of threads, in any tensor order and for any division of the tensor into slices.
Nothing is stored and no generator has a state.

The hash runs on 32-bit integers. With `mix` a bijective finaliser of xor-shifts and odd multipliers (that of Wellons,
"lowbias32", whose bias is near the limit for two multiplications):

    x = mix(low ^ key_low)
    x = mix(x ^ key_high ^ high * 0x9E3779B9)
    u = (x >> 8) * 2**-24                        dropped where u < p
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evomerge.seeding import derive

_WORD = 1 << 32
_HALF_WORD = 1 << 31


def mask_key(seed: int, source: int, name: str) -> int:
    """The 64-bit key of all masks of one tensor of one source."""
    return derive(seed, source, name)


def dropped(key: int, start: int, stop: int, drop_rate: float, device: torch.device | str = "cpu") -> Tensor:
    """Which elements of the slice `[start, stop)` of a flattened tensor are dropped.

    Returns:
        Boolean tensor of shape `(stop - start,)`, true with probability `drop_rate` (in steps of 2**-24, rounded up).
    """
    # u < p in integers: u * 2**24 is one, and the product p * 2**24 is exact.
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


def _uniform_bits(key: int, start: int, stop: int, device: torch.device | str) -> Tensor:
    high, low = divmod(start, _WORD)
    key_high, key_low = divmod(key, _WORD)
    x = torch.arange(stop - start, dtype=torch.int32, device=device)
    x += _signed(low)
    x ^= _signed(key_low)
    _mix_(x)
    x ^= _signed(key_high ^ (high * 0x9E3779B9) % _WORD)
    _mix_(x)
    return _shifted(x, 8)


def _mix_(x: Tensor) -> None:
    """The finaliser, in place. Products wrap modulo 2**32, which is what two's complement int32 does."""
    x ^= _shifted(x, 16)
    x *= _signed(0x7FEB352D)
    x ^= _shifted(x, 15)
    x *= _signed(0x846CA68B)
    x ^= _shifted(x, 16)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's `>>` on int32 copies the sign bit in."""
    return (x >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def _signed(word: int) -> int:
    """The int32 with the bits of an unsigned 32-bit word."""
    return word - _WORD if word >= _HALF_WORD else word
