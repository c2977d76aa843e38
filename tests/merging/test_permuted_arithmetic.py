"""Task arithmetic with permuted task vectors: the same permutations everywhere, merges that know nothing."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import InvalidInput
from evomerge.merging import merge_state_dicts
from evomerge.tensors import rule_tensors
from evomerge.tensors.permutations import permutation


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**63), st.integers(1, 3000))
def test_every_element_comes_to_one_place(seed, elements):
    assert sorted(permutation(seed, 0, "w", elements).origins(0, elements).tolist()) == list(range(elements))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 500), max_size=6))
def test_a_permutation_is_the_same_in_any_division_into_slices(cuts):
    keyed = permutation(1, 2, "w", 500)
    edges = sorted({0, 500, *cuts})
    slices = [keyed.origins(start, stop) for start, stop in itertools.pairwise(edges)]
    assert torch.equal(torch.cat(slices), keyed.origins(0, 500))


def mixed(x):
    """The finaliser of the masks, in Python integers."""
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


@pytest.mark.parametrize("elements", [1, 2, 40, 41, 47, 49])
def test_it_is_the_network_worked_in_integers_with_indices_that_walk_until_they_are_inside(elements):
    keyed = permutation(5, 1, "w", elements)
    rows = next(number for number in range(1, 9) if number**2 >= elements)
    columns = -(-elements // rows)

    def rounds(index):
        left, right = divmod(index, columns)
        for first, second in zip(keyed.keys[::2], keyed.keys[1::2], strict=True):
            left = (left + (mixed(right ^ first) >> 8)) % rows
            right = (right + (mixed(left ^ second) >> 8)) % columns
        return left * columns + right

    def walked(index):
        index = rounds(index)
        while index >= elements:
            index = rounds(index)
        return index

    assert keyed.origins(0, elements).tolist() == [walked(index) for index in range(elements)]


def test_beyond_the_indices_of_int32_it_is_still_a_bijection_near_both_ends():
    keyed = permutation(2, 0, "w", 3 * 2**31 + 7)
    places = torch.cat([keyed.origins(0, 2000), keyed.origins(3 * 2**31 - 2000, 3 * 2**31 + 7)])
    assert len(set(places.tolist())) == 4007
    assert 0 <= int(places.min()) < int(places.max()) < 3 * 2**31 + 7


def test_permutations_are_frozen():
    """A change of these places is a change of every stored recipe with permuted task vectors."""
    places = permutation(0, 0, "weight", 16).origins(0, 16).tolist()
    assert places == [14, 8, 6, 5, 2, 15, 1, 10, 12, 13, 4, 3, 7, 0, 9, 11]  # fmt: skip


def test_seed_source_tensor_and_size_each_give_another_permutation():
    keyed = [(0, 0, "w", 99), (1, 0, "w", 99), (0, 1, "w", 99), (0, 0, "v", 99)]
    found = {tuple(permutation(*key).origins(0, 99).tolist()) for key in keyed}
    assert len(found) == len(keyed)


def test_rows_and_columns_do_not_stay_together():
    rows, columns = 64, 48
    origins = permutation(3, 0, "w", rows * columns).origins(0, rows * columns).reshape(rows, columns)
    for groups, lines in ((origins // columns, origins), (origins % columns, origins.T)):
        assert groups.shape == origins.shape
        # Of the elements of one row or column, those that came from the most common one.
        together = [max(torch.bincount(line // columns).max(), torch.bincount(line % columns).max()) for line in lines]
        assert max(together) < 10


def models():
    generator = torch.Generator().manual_seed(2)
    return [{name: torch.randn(40, 30, generator=generator) for name in ("v", "w")} for _ in range(3)]


def test_a_permuted_task_vector_has_the_elements_of_the_task_vector():
    base, one, _ = ({name: tensor.double() for name, tensor in model.items()} for model in models())
    merged = merge_state_dicts("permuted_arithmetic", [one], base, {"weight": 1.0})
    for name in base:
        permuted, tau = merged[name] - base[name], one[name] - base[name]
        assert torch.allclose(permuted.reshape(-1).sort().values, tau.reshape(-1).sort().values)
        assert abs(torch.corrcoef(torch.stack([permuted.reshape(-1), tau.reshape(-1)]))[0, 1]) < 0.15


def test_it_is_the_weighted_sum_of_what_each_source_gives_alone():
    base, one, two = models()
    both = merge_state_dicts("permuted_arithmetic", [one, two], base, {"weight": [0.5, -2.0]}, seed=4)
    for name in base:
        size = base[name].numel()
        expected = base[name].clone().reshape(-1)
        for place, (source, weight) in enumerate(((one, 0.5), (two, -2.0))):
            tau = (source[name] - base[name]).reshape(-1)
            expected += weight * tau[permutation(4, place, name, size).origins(0, size)]
        assert torch.allclose(both[name].reshape(-1), expected, atol=1e-6)


def test_pieces_do_not_change_a_bit(monkeypatch):
    base, *sources = models()
    whole = merge_state_dicts("permuted_arithmetic", sources, base, {"weight": 0.7})
    monkeypatch.setattr(rule_tensors, "CPU_PIECE", 77)
    in_pieces = merge_state_dicts("permuted_arithmetic", sources, base, {"weight": 0.7})
    assert all(torch.equal(whole[name], in_pieces[name]) for name in base)


def test_no_weight_is_the_base():
    base, *sources = models()
    merged = merge_state_dicts("permuted_arithmetic", sources, base, {"weight": 0.0})
    assert all(torch.equal(merged[name], base[name]) for name in base)


def test_without_a_base_there_are_no_task_vectors():
    with pytest.raises(InvalidInput, match="base"):
        merge_state_dicts("permuted_arithmetic", models()[1:], None, {"weight": 1.0})
