"""Exact order statistics without sorting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomerge.tensors.order_statistics import (
    CountedThresholds,
    Cut,
    expected_order_statistics,
    kth_smallest_magnitude,
    order_statistics,
    trim,
)

floats32 = st.floats(width=32, allow_nan=False)


@pytest.mark.parametrize("few", [0, 20, 1 << 16])  # counted, either, gathered
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(floats32, min_size=1, max_size=60), data=st.data())
def test_the_kth_magnitude_is_that_of_the_sorted_vector(values, data, few, monkeypatch):
    monkeypatch.setattr("evomerge.tensors.order_statistics.FEW", few)
    k = data.draw(st.integers(1, len(values)))
    tensor = torch.tensor(values, dtype=torch.float32)
    split = data.draw(st.integers(0, len(values)))
    pieces = [tensor[:split], tensor[split:]]
    assert kth_smallest_magnitude(lambda: pieces, k, torch.float32) == sorted(abs(v) for v in values)[k - 1]


@pytest.mark.parametrize("few", [0, 1 << 16])
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.floats(allow_nan=False), min_size=1, max_size=40), data=st.data())
def test_the_kth_magnitude_of_double_precision_is_exact_too(values, data, few, monkeypatch):
    monkeypatch.setattr("evomerge.tensors.order_statistics.FEW", few)
    k = data.draw(st.integers(1, len(values)))
    pieces = [torch.tensor(values, dtype=torch.float64)]
    assert kth_smallest_magnitude(lambda: pieces, k, torch.float64) == sorted(abs(v) for v in values)[k - 1]


def test_single_and_double_precision_in_one_scope_are_ranked_together():
    pieces = [torch.tensor([1.0, 3.0]), torch.tensor([2.0, 1e-300], dtype=torch.float64)]
    assert [kth_smallest_magnitude(lambda: pieces, k, torch.float64) for k in (1, 2, 3, 4)] == [1e-300, 1.0, 2.0, 3.0]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(floats32, floats32), min_size=1, max_size=40), st.data())
def test_order_statistics_of_several_vectors_are_those_of_the_sorted_numbers(pairs, data):
    ranks = data.draw(st.lists(st.integers(1, len(pairs)), min_size=1, max_size=3))
    vectors = [[pair[index] for pair in pairs] for index in (0, 1)]
    for dtype in (torch.float32, torch.float64):
        whole = [torch.tensor(values, dtype=dtype) for values in vectors]
        pieces = [[values[:7] for values in whole], [values[7:] for values in whole]]
        found = order_statistics(lambda pieces=pieces: pieces, [ranks, ranks[:1]], dtype)
        assert found == [[sorted(vectors[0])[k - 1] for k in ranks], [sorted(vectors[1])[ranks[0] - 1]]]


@pytest.mark.parametrize("room", [1 << 20, 3])
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(floats32, floats32 | st.just(0.0)), min_size=1, max_size=40), data=st.data())
def test_whatever_a_sample_lets_expect_the_numbers_are_the_same(pairs, data, room, monkeypatch):
    monkeypatch.setattr("evomerge.tensors.order_statistics.GATHERED", room)
    ranks = data.draw(st.lists(st.integers(1, len(pairs)), min_size=1, max_size=3))
    vectors = [torch.tensor([pair[index] for pair in pairs]) for index in (0, 1)]
    sample = [data.draw(st.lists(floats32, max_size=9)) for _ in range(2)]
    for given_sample in ([[torch.tensor(part) for part in sample]], [[vector[::2] for vector in vectors]]):
        found = expected_order_statistics(
            lambda: [[vector[:7] for vector in vectors], [vector[7:] for vector in vectors]],
            ranks,
            torch.float32,
            elements=len(pairs),
            sample=given_sample,
        )
        expected = order_statistics(lambda: [vectors], [ranks, ranks], torch.float32)
        assert [list(map(str, numbers)) for numbers in found] == [list(map(str, numbers)) for numbers in expected]


def test_a_nan_ranks_last_also_where_a_sample_is_given():
    vector = torch.tensor([3.0, float("nan"), 1.0, 2.0])
    found = expected_order_statistics(lambda: [[vector]], [3, 4], torch.float32, elements=4, sample=[[vector]])
    assert str(found) == "[[3.0, nan]]"


def test_with_a_sample_the_vectors_are_computed_once():
    generator = torch.Generator().manual_seed(0)
    vector, calls = torch.randn(200_000, generator=generator), []

    def pieces():
        calls.append(1)
        return ([piece] for piece in vector.split(30_000))

    ranks = [1, 20, 100_000, 180_000, 200_000]
    found = expected_order_statistics(pieces, ranks, torch.float32, elements=200_000, sample=[[vector[::61]]])
    assert found == [[float(vector.sort().values[k - 1]) for k in ranks]]
    assert len(calls) == 1


@pytest.mark.parametrize("k", [0, -1, 4])
def test_a_rank_beyond_the_number_of_elements_is_an_error(k):
    with pytest.raises(ValueError, match=f"no {k}-th smallest of 3 elements"):
        kth_smallest_magnitude(lambda: [torch.ones(3)], k, torch.float32)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-(1 << 31), (1 << 31) - 1), min_size=1, max_size=40), st.data())
def test_numbers_of_both_signs_are_ranked_by_their_bits(patterns, data):
    vector = torch.tensor(patterns, dtype=torch.int32).view(torch.float32)
    vector = vector[vector.isfinite()]  # denormals and zeros of both signs among them
    if len(vector):
        k = data.draw(st.integers(1, len(vector)))
        assert order_statistics(lambda: [[vector]], [[k]], torch.float32) == [[sorted(vector.tolist())[k - 1]]]


def test_a_large_random_vector_agrees_with_sorting():
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(100_001, generator=generator)
    ordered = tensor.abs().sort().values
    for k in (1, 2, 50_000, 99_999, 100_001):
        assert kth_smallest_magnitude(lambda: tensor.split(30_000), k, torch.float32) == float(ordered[k - 1])


def test_ties_are_kept_lowest_index_first_in_the_order_of_the_scope():
    vectors = {"a": torch.tensor([1.0, -2.0, 1.0]), "b": torch.tensor([1.0, 3.0])}
    counted = CountedThresholds(lambda source, name: iter(vectors[name].split(2)), lambda names: torch.float32)
    assert counted.ties_to_keep(0, ("a", "b"), threshold=1.0, kept=4) == {"a": 2, "b": 0}
    assert counted.ties_to_keep(0, ("a", "b"), threshold=1.0, kept=5) == {"a": 2, "b": 1}


def test_trimming_in_pieces_uses_up_the_ties():
    vector = torch.tensor([1.0, -1.0, 2.0, 1.0])
    whole, _ = trim(vector, Cut(1.0, ties=1))
    assert whole.tolist() == [1.0, 0.0, 2.0, 0.0]
    first, cut = trim(vector[:1], Cut(1.0, ties=1))
    second, _ = trim(vector[1:], cut)
    assert torch.equal(torch.cat([first, second]), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(deadline=None, max_examples=50)
@given(values=st.lists(floats32, min_size=1, max_size=40))
def test_elements_at_the_threshold_survive(dtype, values):
    vector = torch.tensor(values, dtype=dtype)
    threshold = sorted(abs(v) for v in values)[len(values) // 2]
    expected = [value if abs(value) >= threshold else 0.0 for value in values]
    assert trim(vector, Cut(threshold))[0].tolist() == expected


def test_n5_a_nan_survives_trimming():
    vector = torch.tensor([float("nan"), 1.0, 2.0] * 20)
    for cut in (Cut(0.0), Cut(1.5), Cut(1.5, ties=0)):
        assert bool(trim(vector, cut)[0][0].isnan())
