"""Linear, task arithmetic and SLERP, by hand and by their properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import InvalidInput, MergeError
from evomerge.merging import merge_state_dicts


def model(*values: float, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(values, dtype=dtype)}


def merged(method, sources, base=None, parameters=(), **options) -> list[float]:
    return merge_state_dicts(method, sources, base, dict(parameters), options)["w"].tolist()


def test_linear_divides_by_the_sum_of_the_weights():
    sources = [model(1.0, 2.0), model(5.0, -2.0)]
    assert merged("linear", sources, parameters={"weight": [1.0, 3.0]}) == [4.0, -1.0]
    assert merged("linear", sources, parameters={"weight": [1.0, 3.0]}, normalize=False) == [16.0, -4.0]
    assert merged("linear", sources) == [3.0, 0.0]  # the uniform soup


def test_linear_uses_the_base_for_nothing_but_the_dtype():
    result = merge_state_dicts("linear", [model(1.0), model(3.0)], base=model(100.0, dtype=torch.float64))
    assert result["w"].tolist() == [2.0]
    assert result["w"].dtype == torch.float64


def test_task_arithmetic_adds_weighted_task_vectors_to_the_base():
    base, sources = model(1.0, 1.0), [model(2.0, 1.0), model(1.0, 5.0)]
    assert merged("task_arithmetic", sources, base, {"weight": [2.0, 0.5]}) == [3.0, 3.0]
    assert merged("task_arithmetic", sources, base, {"weight": 1.0}) == [2.0, 5.0]
    assert merged("task_arithmetic", sources, base, {"weight": [3.0, 1.0]}, normalize=True) == [1.75, 2.0]


def test_a_negative_task_weight_subtracts_the_skill():
    assert merged("task_arithmetic", [model(3.0)], model(1.0), {"weight": -0.5}) == [0.0]


@pytest.mark.parametrize(("method", "base"), [("linear", None), ("task_arithmetic", model(0.0))])
def test_weights_that_sum_to_zero_cannot_be_normalised(method, base):
    with pytest.raises(MergeError, match="sum to 0"):
        merged(method, [model(1.0), model(2.0)], base, {"weight": 0.0}, normalize=True)
    assert merged(method, [model(1.0), model(2.0)], base, {"weight": 0.0}, normalize=False) == [0.0]


def test_opposite_task_weights_cannot_be_normalised():
    with pytest.raises(MergeError, match="cannot be divided"):
        merged("task_arithmetic", [model(1.0), model(2.0)], model(0.0), {"weight": [1.0, -1.0]}, normalize=True)


def test_n19_a_weight_of_one_third_is_not_rounded_to_bfloat16():
    # In bfloat16 a third is 0.33398: three times that, accumulated in bfloat16, misses 1.
    sources = [model(1.0, 3.0, 640.0, dtype=torch.bfloat16)] * 3
    for normalize in (True, False):
        result = merge_state_dicts("linear", sources, None, {"weight": 1 / 3}, {"normalize": normalize})["w"]
        assert result.dtype == torch.bfloat16
        assert result.tolist() == [1.0, 3.0, 640.0]


def test_n19_small_task_vectors_are_accumulated_before_the_cast():
    # 1 + 2**-9 is no bfloat16; four of them make 1 + 2**-7, which is one.
    base = model(1.0, dtype=torch.bfloat16)
    sources = [model(1.0 + 2**-7, dtype=torch.bfloat16)] * 4
    assert merged("task_arithmetic", sources, base, {"weight": 0.25}) == [1.0 + 2**-7]


def test_double_precision_stays_double():
    tiny = 1 + 1e-12
    result = merge_state_dicts("linear", [model(tiny, dtype=torch.float64)] * 2)["w"]
    assert result.dtype == torch.float64
    assert result.tolist() == [tiny]


def test_slerp_of_orthogonal_vectors_follows_the_circle():
    half = math.sqrt(0.5)
    assert merged("slerp", [model(1.0, 0.0), model(0.0, 1.0)], parameters={"t": 0.5}) == pytest.approx([half, half])
    third = [math.cos(math.pi / 6), math.sin(math.pi / 6)]
    assert merged("slerp", [model(1.0, 0.0), model(0.0, 1.0)], parameters={"t": 1 / 3}) == pytest.approx(third)


def test_slerp_measures_the_angle_on_normalised_tensors_but_mixes_them_as_they_are():
    expected = [3 * math.sqrt(0.5), 5 * math.sqrt(0.5)]
    assert merged("slerp", [model(3.0, 0.0), model(0.0, 5.0)], parameters={"t": 0.5}) == pytest.approx(expected)


def test_slerp_at_60_degrees():
    # phi = 60 degrees: sin(30) / sin(60) = 1 / sqrt(3) of each
    b = [0.5, math.sqrt(0.75)]
    expected = [1.5 / math.sqrt(3), math.sqrt(0.75) / math.sqrt(3)]
    assert merged("slerp", [model(1.0, 0.0), model(*b)], parameters={"t": 0.5}) == pytest.approx(expected)


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
def test_slerp_of_nearly_parallel_or_antiparallel_tensors_is_linear(t):
    a, b = [1.0, 2.0, 3.0], [1.01, 2.0, 3.0]
    expected = [(1 - t) * x + t * y for x, y in zip(a, b, strict=True)]
    assert merged("slerp", [model(*a), model(*b)], parameters={"t": t}) == pytest.approx(expected)
    assert merged("slerp", [model(*a), model(*(-x for x in a))], parameters={"t": 0.5}) == [0.0, 0.0, 0.0]


def test_slerp_takes_one_angle_per_tensor():
    one = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([1.0, 0.0])}
    two = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([2.0, 0.0])}
    result = merge_state_dicts("slerp", [one, two], parameters={"t": 0.5})
    assert result["a"].tolist() == pytest.approx([math.sqrt(0.5), math.sqrt(0.5)])
    assert result["b"].tolist() == [1.5, 0.0]


def test_slerp_of_zero_tensors_is_finite():
    assert merged("slerp", [model(0.0, 0.0), model(0.0, 0.0)]) == [0.0, 0.0]
    # A zero tensor is orthogonal to everything: sin(45 degrees) of the other one is left.
    assert merged("slerp", [model(0.0, 0.0), model(4.0, 0.0)]) == pytest.approx([4 * math.sqrt(0.5), 0.0])


@pytest.mark.parametrize("n", [1, 3])
def test_slerp_refuses_other_than_two_sources(n):
    with pytest.raises(InvalidInput, match="exactly 2"):
        merged("slerp", [model(1.0)] * n)


vectors = st.lists(st.integers(-50, 50), min_size=1, max_size=8)


@settings(deadline=None, max_examples=50)
@given(vectors, st.floats(0.01, 100))
def test_linear_of_one_source_is_that_source(values, weight):
    assert merged("linear", [model(*values)], parameters={"weight": weight}) == values


@settings(deadline=None, max_examples=50)
@given(vectors)
def test_task_arithmetic_of_one_source_at_weight_one_is_that_source(values):
    base = model(*(3 * value + 1 for value in values))
    assert merged("task_arithmetic", [model(*values)], base, {"weight": 1.0}) == values


@settings(deadline=None, max_examples=50)
@given(vectors, st.permutations([0, 1, 2]))
def test_the_order_of_sources_does_not_matter(values, order):
    sources = [model(*(value * factor for value in values)) for factor in (1, -2, 5)]
    weights = [0.5, 1.0, 2.0]
    for method in ("linear", "task_arithmetic"):
        plain = merged(method, sources, model(*values), {"weight": weights})
        permuted = merged(method, [sources[i] for i in order], model(*values), {"weight": [weights[i] for i in order]})
        assert permuted == pytest.approx(plain, rel=1e-6, abs=1e-5)


@settings(deadline=None, max_examples=50)
@given(vectors, vectors, st.floats(0, 1))
def test_slerp_ends_at_its_sources_and_is_symmetric(one, two, t):
    size = min(len(one), len(two))
    a, b = model(*one[:size]), model(*two[:size])
    assert merged("slerp", [a, b], parameters={"t": 0.0}) == a["w"].tolist()
    assert merged("slerp", [a, b], parameters={"t": 1.0}) == b["w"].tolist()
    forward = merged("slerp", [a, b], parameters={"t": t})
    assert merged("slerp", [b, a], parameters={"t": 1 - t}) == pytest.approx(forward, rel=1e-5, abs=1e-4)


@settings(deadline=None, max_examples=50)
@given(st.floats(0, 2 * math.pi), st.floats(0, 2 * math.pi), st.floats(0, 1))
def test_slerp_of_tensors_of_one_norm_keeps_the_norm(alpha, beta, t):
    if abs(math.cos(alpha - beta)) > 0.999:
        return
    a, b = (model(7 * math.cos(angle), 7 * math.sin(angle)) for angle in (alpha, beta))
    assert math.hypot(*merged("slerp", [a, b], parameters={"t": t})) == pytest.approx(7, rel=1e-4)
