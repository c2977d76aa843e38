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
from evomerge.tensors.masks import mixed_index
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


def test_it_is_a_feistel_network_whose_indices_walk_until_they_are_inside():
    keyed, elements = permutation(5, 1, "w", 40), 40

    def rounds(index):  # 40 elements need 6 bits: halves of 3
        left, right = index >> 3, index & 7
        for key in keyed.keys:
            low, high = (word - 2**32 if word >= 2**31 else word for word in (key % 2**32, key // 2**32))
            mixed = int(mixed_index(torch.tensor([right], dtype=torch.int32), low, high)[0])
            left, right = right, left ^ (mixed & 7)
        return left << 3 | right

    def walked(index):
        index = rounds(index)
        while index >= elements:
            index = rounds(index)
        return index

    assert keyed.origins(0, elements).tolist() == [walked(index) for index in range(elements)]


def test_permutations_are_frozen():
    """A change of these places is a change of every stored recipe with permuted task vectors."""
    assert permutation(0, 0, "weight", 16).origins(0, 16).tolist() == [
        9, 10, 8, 11, 4, 12, 3, 0, 2, 7, 14, 13, 15, 1, 5, 6
    ]  # fmt: skip


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
