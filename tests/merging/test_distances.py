"""Distances between weights: examples worked by hand, and their definitions in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import InvalidInput
from evomerge.merging.distances import cosine, l2, ssd, tssd

VALUES = st.sampled_from([0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -3.0, 7.5])
PAIRS = st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=12)


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def plain_ssd(x: list[float], y: list[float]) -> float:
    terms = [abs(a + b) / (abs(a) + abs(b)) for a, b in zip(x, y, strict=True) if a or b]
    return 1 - sum(terms) / len(terms) if terms else 0.0


def plain_trim(x: list[float], keep: float) -> list[float]:
    smallest = sorted(map(abs, x), reverse=True)[: int(len(x) * keep) + 1][-1]
    return [a if abs(a) >= smallest else 0.0 for a in x]


# --- L2 and cosine ---


def test_l2_is_the_euclidean_distance():
    assert l2(t(1.0, 2.0, 3.0), t(1.0, -1.0, 7.0)) == 5.0


def test_cosine_is_one_minus_the_cosine():
    assert cosine(t(1.0, 0.0), t(0.0, 2.0)) == 1.0
    assert cosine(t(3.0, 4.0), t(4.0, 3.0)) == pytest.approx(1 - 24 / 25, abs=1e-15)
    assert cosine(t(1.0, 2.0), t(-2.0, -4.0)) == pytest.approx(2.0, abs=1e-15)


def test_cosine_with_a_zero_vector_is_one_and_between_two_of_them_zero():
    assert cosine(t(0.0, 0.0), t(1.0, 2.0)) == 1.0
    assert cosine(t(0.0, 0.0), t(0.0, 0.0)) == 0.0


# --- SSD and TSSD ---


def test_ssd_averages_over_the_positions_where_not_both_are_zero():
    # |1+1|/2 = 1, |2-2|/4 = 0, (0, 0) is left out, |3+0|/3 = 1, |1-3|/4 = 1/2
    assert ssd(t(1.0, 2.0, 0.0, 3.0, 1.0), t(1.0, -2.0, 0.0, 0.0, -3.0)) == 1 - 2.5 / 4


def test_ssd_of_two_zero_vectors_is_zero():
    assert ssd(t(0.0, 0.0), t(0.0, 0.0)) == 0.0
    assert tssd(t(0.0, 0.0), t(0.0, 0.0)) == 0.0


def test_ssd_is_zero_for_a_multiple_and_one_for_the_opposite():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert ssd(x, 3 * x) == pytest.approx(0.0, abs=1e-6)
    assert ssd(x, -x) == 1.0


def test_tssd_keeps_one_element_more_than_the_share_and_those_tied_with_it():
    x, y = t(4.0, -3.0, 2.0, 1.0), t(1.0, 1.0, 1.0, 9.0)
    # int(4 * 0.5) + 1 = 3 of x stay: 4, -3, 2. In y 1 is tied with the third largest, so all stay.
    assert tssd(x, y) == pytest.approx(1 - (5 / 5 + 2 / 4 + 3 / 3 + 9 / 9) / 4)
    # int(4 * 0) + 1 = 1 of each: 4 and 9, which never meet.
    assert tssd(x, y, keep=0.0) == 0.0
    assert tssd(x, y, keep=1.0) == ssd(x, y) == pytest.approx(1 - (1 + 0.5 + 1 + 1) / 4)


@given(PAIRS, st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 0.99, 1.0]))
@settings(max_examples=150, deadline=None)
def test_ssd_and_tssd_are_their_definitions(pairs, keep):
    x, y = [a for a, _ in pairs], [b for _, b in pairs]
    assert ssd(t(*x), t(*y)) == pytest.approx(plain_ssd(x, y), abs=1e-12)
    assert tssd(t(*x), t(*y), keep) == pytest.approx(plain_ssd(plain_trim(x, keep), plain_trim(y, keep)), abs=1e-12)


@given(PAIRS)
@settings(max_examples=100, deadline=None)
def test_all_distances_are_symmetric_and_zero_between_equal_vectors(pairs):
    x, y = (t(*[pair[index] for pair in pairs]) for index in (0, 1))
    for distance in (l2, cosine, ssd, tssd):
        assert distance(x, y) == pytest.approx(distance(y, x), abs=1e-12)
        assert distance(x, x) == pytest.approx(0.0, abs=1e-12)


# --- how vectors are given ---


@pytest.mark.parametrize("distance", [l2, cosine, ssd, tssd])
def test_a_dictionary_is_the_concatenation_of_its_tensors(distance, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    x, y = (
        {"b": torch.randn(3, 4, generator=generator), "a": torch.randn(5, generator=generator), "c": torch.empty(0)}
        for _ in range(2)
    )
    whole = distance(torch.cat([x["a"], x["b"].flatten()]), torch.cat([y["a"], y["b"].flatten()]))
    assert distance(x, dict(reversed(y.items()))) == pytest.approx(whole, abs=1e-12)
    monkeypatch.setattr("evomerge.merging.distances.PIECE", 2)
    assert distance(x, y) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64])
def test_every_real_dtype_is_read_exactly(dtype):
    x, y = (torch.tensor(values, dtype=dtype) for values in ([3, -1, 0, 2], [1, 1, 0, 8]))
    assert l2(x, y) == math.sqrt(4 + 4 + 0 + 36)
    assert tssd(x, y, 0.25) == plain_ssd([3, 0, 0, 2], [1, 1, 0, 8])


def test_float64_is_compared_without_rounding_to_float32():
    tiny = 1e-12
    x, y = (torch.tensor(values, dtype=torch.float64) for values in ([1.0, 1.0 + tiny, 2.0], [1.0, 1.0, 1.0]))
    assert l2(x, y) == pytest.approx(math.sqrt(tiny**2 + 1), rel=1e-15)
    # Of x int(3 * 0.4) + 1 = 2 stay, and 1 is not tied with 1 + tiny.
    assert tssd(x, -y, 0.4) == pytest.approx(plain_ssd([0.0, 1.0 + tiny, 2.0], [-1.0, -1.0, -1.0]), abs=1e-15)


def test_vectors_without_elements_have_distance_zero():
    for distance in (l2, cosine, ssd, tssd):
        assert distance({}, {}) == 0.0
        assert distance(torch.empty(0), torch.empty(0)) == 0.0


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (t(1.0), t(1.0, 2.0), "shapes"),
        (t(1.0, 2.0), torch.ones(2, 1), "shapes"),
        ({"a": t(1.0)}, {"b": t(1.0)}, "same tensor names"),
        ({"a": t(1.0)}, t(1.0), "same tensor names"),
        (t(math.nan), t(1.0), "finite"),
        (t(1.0), t(math.inf), "finite"),
        (torch.ones(2, dtype=torch.complex64), t(1.0, 2.0), "real"),
        ([1.0], t(1.0), "real"),
    ],
)
def test_what_cannot_be_compared_is_refused(x, y, message):
    for distance in (l2, cosine, ssd, tssd):
        with pytest.raises(InvalidInput, match=message):
            distance(x, y)


@pytest.mark.parametrize("keep", [-0.1, 1.1, math.nan, True, "0.5", None])
def test_a_share_outside_of_zero_to_one_is_refused(keep):
    with pytest.raises(InvalidInput, match="keep"):
        tssd(t(1.0), t(1.0), keep)
