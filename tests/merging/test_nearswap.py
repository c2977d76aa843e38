"""Nearswap: worked by hand, its ends, and mergekit's form of it."""

import pytest
import torch

from evomerge.errors import InvalidInput
from evomerge.merging import merge_state_dicts

FIRST = {"w": torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0])}
SECOND = {"w": torch.tensor([1.25, 1.5, 3.0, 0.0, 1.0])}


def merged(t, first=FIRST, second=SECOND, **arguments):
    return merge_state_dicts("nearswap", [first, second], parameters={"t": t}, **arguments)["w"]


def test_what_is_near_is_swapped_and_what_is_far_moves_by_t():
    assert merged(0.5).tolist() == [1.25, 1.5, 1.5, 0.5, 1.0]


def test_zero_is_the_first_source_and_a_large_t_exactly_the_second():
    first, second = (torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert torch.equal(merged(0.0, {"w": first}, {"w": second}), first)
    assert torch.equal(merged(100.0, {"w": first}, {"w": second}), second)


def test_it_is_the_interpolation_with_a_weight_of_t_over_the_distance():
    first, second = (torch.randn(50, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    weight = (0.3 / (second - first).abs()).clamp(0, 1)
    expected = (1 - weight) * first + weight * second
    assert torch.allclose(merged(0.3, {"w": first}, {"w": second}), expected, atol=1e-6)


def test_the_base_of_the_search_is_not_looked_at():
    assert torch.equal(merged(0.5, base={"w": torch.full((5,), 9.0)}), merged(0.5))


def test_one_element_and_equal_sources():
    assert merged(0.1, {"w": torch.tensor(2.0)}, {"w": torch.tensor(1.0)}).item() == pytest.approx(1.9)
    assert torch.equal(merged(0.1, FIRST, FIRST), FIRST["w"])


def test_a_negative_t_and_a_third_source_are_refused():
    with pytest.raises(InvalidInput, match="outside of what the method allows"):
        merged(-0.1)
    with pytest.raises(InvalidInput, match="exactly 2 sources"):
        merge_state_dicts("nearswap", [FIRST, SECOND, FIRST])
