"""Counter-based masks: the same bits everywhere, and good enough to be called random."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.tensors.masks import dropped, mask_key, uniform_bits

WORD = 2**32


def mix(x: int) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D % WORD
    x ^= x >> 15
    x = x * 0x846CA68B % WORD
    return x ^ x >> 16


def bits_by_definition(key: int, index: int) -> int:
    x = mix(index % WORD ^ key % WORD)
    return mix(x ^ key // WORD ^ index // WORD * 0x9E3779B9 % WORD) >> 8


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**62), st.integers(0, 40))
def test_bits_equal_the_definition_in_python_integers(key, start, length):
    expected = [bits_by_definition(key, index) for index in range(start, start + length)]
    assert uniform_bits(key, start, start + length).tolist() == expected


@pytest.mark.parametrize("boundary", [2**31, 2**32, 3 * 2**32, 2**40, 2**53])
def test_bits_equal_the_definition_across_word_boundaries(boundary):
    key = mask_key(7, 1, "w")
    expected = [bits_by_definition(key, index) for index in range(boundary - 20, boundary + 20)]
    assert uniform_bits(key, boundary - 20, boundary + 20).tolist() == expected


def test_masks_are_frozen():
    """A change of these bits is a change of every stored DARE recipe."""
    assert (
        "".join(str(int(bit)) for bit in dropped(mask_key(0, 0, "weight"), 0, 48, 0.5))
        == "101001010110110001011001101110000010000100010111"
    )


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 500), max_size=6), st.floats(0, 1))
def test_a_mask_is_the_same_in_any_division_into_slices(cuts, drop_rate):
    key = mask_key(1, 0, "w")
    edges = sorted({0, 500, *cuts})
    slices = [dropped(key, a, b, drop_rate) for a, b in itertools.pairwise(edges)]
    assert torch.equal(torch.cat(slices), dropped(key, 0, 500, drop_rate))


def test_an_element_dropped_at_some_rate_is_dropped_at_every_higher_rate():
    masks = [dropped(5, 0, 10_000, rate) for rate in (0.1, 0.5, 0.9)]
    assert bool((masks[0] <= masks[1]).all())
    assert bool((masks[1] <= masks[2]).all())


def test_nothing_is_dropped_at_rate_zero_and_everything_at_one():
    assert not bool(dropped(5, 0, 10_000, 0.0).any())
    assert bool(dropped(5, 0, 10_000, 1.0).all())


@pytest.mark.parametrize("drop_rate", [0.01, 0.1, 0.5, 0.9, 0.99])
def test_the_share_dropped_is_the_drop_rate(drop_rate):
    n = 1 << 20
    for name in ("a", "b", "model.embed_tokens.weight"):
        share = float(dropped(mask_key(0, 0, name), 0, n, drop_rate).float().mean())
        assert abs(share - drop_rate) < 5 * math.sqrt(drop_rate * (1 - drop_rate) / n)


def test_masks_are_independent_of_neighbours_sources_tensors_and_seeds():
    n = 1 << 18
    one = dropped(mask_key(0, 0, "a"), 0, n + 1, 0.5).float() * 2 - 1
    keys = [(0, 1, "a"), (0, 0, "b"), (1, 0, "a"), (0, 1, "b")]
    others = [dropped(mask_key(*key), 0, n, 0.5).float() * 2 - 1 for key in keys]
    lagged = [dropped(mask_key(0, 0, "a"), lag, n + lag, 0.5).float() * 2 - 1 for lag in (1, 2, 64, 1024, 2**32)]
    for other in [*others, *lagged]:
        assert abs(float((one[:n] * other).mean())) < 5 / math.sqrt(n)


def test_the_bits_are_uniform():
    counts = torch.bincount(uniform_bits(mask_key(3, 2, "w"), 0, 1 << 20) >> 16, minlength=256).double()
    chi_squared = float(((counts - 4096) ** 2 / 4096).sum())
    assert 255 - 6 * math.sqrt(2 * 255) < chi_squared < 255 + 6 * math.sqrt(2 * 255)
