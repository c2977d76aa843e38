"""NuSLERP: worked by hand along tensors, rows and columns, and where there is no angle."""

import math
from itertools import chain

import pytest
import torch

from evomerge.errors import InvalidInput, MergeError
from evomerge.merging import merge_state_dicts
from evomerge.tensors import rule_tensors


def merged(first, second, weight=1.0, base=None, **options):
    sources = [{"w": torch.as_tensor(each)} for each in (first, second)]
    return merge_state_dicts("nuslerp", sources, None if base is None else {"w": base}, {"weight": weight}, options)[
        "w"
    ]


def slerp(one, other, t):
    """The definition for two vectors."""
    cosine = sum(a * b for a, b in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)
    angle = math.acos(cosine)
    return [
        (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)
        for a, b in zip(one, other, strict=True)
    ]


def test_the_share_of_the_second_source_is_its_weight_in_the_sum():
    third = [math.cos(math.pi / 6), 2 * math.sin(math.pi / 6)]  # weights 2 : 1 are t = 1/3, 30 degrees of 90
    assert merged([1.0, 0.0], [0.0, 2.0], [2.0, 1.0]).tolist() == pytest.approx(third)
    assert merged([1.0, 0.0], [0.0, 2.0], [20.0, 10.0]).tolist() == pytest.approx(third)


ONE, OTHER = [[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]], [[2.0, 1.0], [1.0, 1.0], [-1.0, 2.0]]


@pytest.mark.parametrize("piece", [2, 1 << 17])
def test_each_row_and_each_column_has_an_angle_of_its_own(piece, monkeypatch):
    monkeypatch.setattr(rule_tensors, "CPU_PIECE", piece)
    rows = [slerp(a, b, 0.25) for a, b in zip(ONE, OTHER, strict=True)]
    assert torch.allclose(merged(ONE, OTHER, [3.0, 1.0], units="rows"), torch.tensor(rows))
    columns = [slerp(a, b, 0.25) for a, b in zip(zip(*ONE, strict=True), zip(*OTHER, strict=True), strict=True)]
    assert torch.allclose(merged(ONE, OTHER, [3.0, 1.0], units="columns"), torch.tensor(columns).T)
    flat = slerp([*chain(*ONE)], [*chain(*OTHER)], 0.25)
    assert torch.allclose(merged(ONE, OTHER, [3.0, 1.0]).flatten(), torch.tensor(flat))


@pytest.mark.parametrize("piece", [2, 1 << 17])
@pytest.mark.parametrize("method", ["nuslerp", "arcee_fusion", "model_stock"])
def test_the_rows_of_a_stack_are_those_of_its_matrices(method, piece, monkeypatch):
    monkeypatch.setattr(rule_tensors, "CPU_PIECE", piece)
    generator = torch.Generator().manual_seed(0)
    base, *sources = (torch.randn(2, 3, 5, generator=generator) for _ in range(3))
    options = {"nuslerp": {"units": "rows"}, "model_stock": {"filter_wise": True}}.get(method, {})

    def found(shape):
        given = [{"w": each.reshape(shape)} for each in (*sources, base)]
        return merge_state_dicts(method, given[:2], given[2] if method == "model_stock" else None, {}, options)["w"]

    assert torch.equal(found((2, 3, 5)).reshape(6, 5), found((6, 5)))


def test_one_row_is_a_tensor_and_so_is_a_vector_in_any_unit():
    one, other = torch.tensor(ONE).flatten(), torch.tensor(OTHER).flatten()
    expected = merged(one, other, [3.0, 1.0])
    for units in ("tensor", "rows", "columns"):
        assert torch.allclose(merged(one, other, [3.0, 1.0], units=units), expected)
    assert torch.allclose(merged(one[None], other[None], [3.0, 1.0], units="rows")[0], expected)
    assert torch.allclose(merged(one[:, None], other[:, None], [3.0, 1.0], units="columns")[:, 0], expected)


@pytest.mark.parametrize("units", ["tensor", "rows", "columns"])
def test_task_vectors_are_interpolated_on_the_base(units):
    base = torch.tensor([[5.0, -3.0], [1.0, 0.0], [2.0, 2.0]])
    one, other = torch.tensor(ONE), torch.tensor(OTHER)
    found = merged(base + one, base + other, [3.0, 1.0], base, units=units, vectors="task_vectors")
    assert torch.allclose(found, base + merged(one, other, [3.0, 1.0], units=units), atol=1e-6)
    with pytest.raises(InvalidInput, match="give the base"):
        merged(one, other, units=units, vectors="task_vectors")


@pytest.mark.parametrize("units", ["tensor", "rows", "columns"])
def test_the_ends_are_the_sources_and_the_order_does_not_matter(units):
    one, other = torch.tensor(ONE), torch.tensor(OTHER)
    assert torch.allclose(merged(one, other, [1.0, 0.0], units=units), one)
    assert torch.allclose(merged(one, other, [0.0, 1.0], units=units), other)
    swapped = merged(other, one, [1.0, 3.0], units=units)
    assert torch.allclose(merged(one, other, [3.0, 1.0], units=units), swapped)
    with pytest.raises(MergeError, match="all 0"):
        merged(one, other, [0.0, 0.0], units=units)


@pytest.mark.parametrize("units", ["tensor", "rows", "columns"])
def test_parallel_and_opposite_vectors_are_averaged(units):
    one = torch.tensor([[1.0], [2.0]])
    assert torch.allclose(merged(one, 3 * one, units=units), 2 * one)
    assert torch.allclose(merged(one, one, units=units), one)
    assert torch.allclose(merged(one, -one, [3.0, 1.0], units=units), 0.5 * one)
    assert merged(torch.tensor(2.0), torch.tensor(4.0), units=units).item() == pytest.approx(3.0)


@pytest.mark.parametrize("units", ["tensor", "rows", "columns"])
def test_a_zero_vector_is_at_right_angles(units):
    one = torch.tensor([[1.0, 2.0]]) if units == "rows" else torch.tensor([[1.0], [2.0]])
    zero = torch.zeros_like(one)
    assert torch.allclose(merged(zero, one, units=units), math.sin(math.pi / 4) * one)
    assert merged(zero, zero, units=units).abs().sum() == 0
