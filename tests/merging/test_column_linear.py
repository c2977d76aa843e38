"""The merge with a coefficient per column: `linear` where the coefficients are constant, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from evomerge.elementwise.column_linear import NONLINEARITIES, apply
from evomerge.errors import InvalidInput
from evomerge.merging import merge_state_dicts
from evomerge.methods import resolve_parameters
from evomerge.spaces import load_space

SHAPES = {"linear": (30, 8), "conv": (8, 30), "norm": (8,), "scalar": (), "empty": (0, 4), "cube": (3, 4, 5)}
WEIGHTS = (0.2, 1 / 3, 0.7)


def models(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [
        {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()} for _ in WEIGHTS
    ]


def constant(shapes, dtype=torch.float32):
    return [{name: torch.full(shape, weight, dtype=dtype) for name, shape in shapes.items()} for weight in WEIGHTS]


SCALARS = dict.fromkeys(SHAPES, ())
COLUMNS = {"linear": (8,), "conv": (8, 1), "norm": (8,), "scalar": (), "empty": (4,), "cube": (4, 1)}


@pytest.mark.parametrize("shapes", [SCALARS, COLUMNS, SHAPES], ids=["scalars", "columns", "elements"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_constant_coefficients_give_the_bits_of_linear(shapes, dtype):
    sources = models(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    columns = merge_state_dicts("column_linear", sources, parameters={"coefficients": constant(shapes, wide)})
    linear = merge_state_dicts("linear", sources, parameters={"weight": WEIGHTS}, options={"normalize": False})
    assert all(torch.equal(columns[name], linear[name]) for name in SHAPES)


def test_a_coefficient_of_one_third_gives_the_bits_of_the_uniform_soup():
    sources = models()
    thirds = [{name: torch.full((), 1 / 3) for name in SHAPES}] * 3
    columns = merge_state_dicts("column_linear", sources, parameters={"coefficients": thirds})
    soup = merge_state_dicts("linear", sources)
    assert all(torch.equal(columns[name], soup[name]) for name in SHAPES)


@pytest.mark.parametrize("phi", list(NONLINEARITIES))
def test_columns_and_rows_are_scaled_by_phi(phi):
    generator = torch.Generator().manual_seed(1)
    sources = models()
    coefficients = [{name: torch.randn(shape, generator=generator) for name, shape in COLUMNS.items()} for _ in WEIGHTS]
    merged = merge_state_dicts(
        "column_linear", sources, parameters={"coefficients": coefficients}, options={"phi": phi}
    )  # fmt: skip
    value = {"identity": lambda c: c, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": torch.relu}[phi]
    for name in SHAPES:
        expected = sum(source[name] * value(each[name]) for source, each in zip(sources, coefficients, strict=True))
        torch.testing.assert_close(merged[name], expected)
    column = sum(
        source["linear"][:, 3] * value(each["linear"][3]) for source, each in zip(sources, coefficients, strict=True)
    )
    torch.testing.assert_close(merged["linear"][:, 3], column)


@pytest.mark.parametrize("phi", list(NONLINEARITIES))
@pytest.mark.parametrize("factor", [1 / 2, 1 / 3, 1 / 7])
def test_the_inverse_of_phi_gives_the_factor_back(phi, factor):
    raw = torch.tensor(NONLINEARITIES[phi].inverse(factor))
    assert float(apply(phi, raw)) == pytest.approx(factor, rel=1e-7)


@pytest.mark.parametrize("phi", list(NONLINEARITIES))
def test_the_slope_of_phi_is_its_derivative(phi):
    c = torch.tensor([-2.0, -0.3, 0.4, 1.5], requires_grad=True)
    NONLINEARITIES[phi].value(c).sum().backward()
    torch.testing.assert_close(NONLINEARITIES[phi].slope(c.detach()), c.grad)


def test_what_phi_never_gives_has_no_inverse():
    assert NONLINEARITIES["tanh"].inverse(1.0) is None
    assert NONLINEARITIES["sigmoid"].inverse(0.0) is None
    assert NONLINEARITIES["relu"].inverse(-0.1) is None
    assert NONLINEARITIES["identity"].inverse(-3.0) == -3.0


@pytest.mark.parametrize("piece", [1, 7, 16, 10**6])
@pytest.mark.parametrize("threads", [1, 2])
def test_neither_pieces_nor_threads_change_a_bit(monkeypatch, piece, threads):
    sources, coefficients = models(), constant(COLUMNS)
    coefficients[1]["linear"] = torch.linspace(-1, 1, 8)

    def merged():
        return merge_state_dicts(
            "column_linear", sources, parameters={"coefficients": coefficients}, options={"phi": "tanh"}
        )

    expected = merged()
    monkeypatch.setattr("evomerge.elementwise.column_linear.CPU_PIECE", piece)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = merged()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[name], expected[name]) for name in SHAPES)


def given(**changes):
    coefficients = constant(COLUMNS)
    coefficients[1] |= changes
    return coefficients


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "has no default; give it"),
        ({"coefficients": torch.ones(3)}, "a list of 3 mappings .* but got a Tensor"),
        ({"coefficients": [torch.ones(3)] * 3}, "but got a list with Tensor"),
        ({"coefficients": constant(COLUMNS)[:2]}, "but got 2 mappings"),
        ({"coefficents": constant(COLUMNS)}, "did you mean 'coefficients'"),
        ({"coefficients": [{}] * 3}, "source 0 have no entry for tensor 'conv'"),
        ({"coefficients": given(linear=torch.ones(30))}, r"shape \[30\], which does not broadcast to \[30, 8\]"),
        ({"coefficients": given(norm=torch.ones(1, 8))}, r"shape \[1, 8\], which does not broadcast to \[8\]"),
        ({"coefficients": given(norm=torch.full((8,), math.nan))}, "source 1 for tensor 'norm' is not finite"),
        ({"coefficients": given(norm=torch.ones(8, dtype=torch.int64))}, "is torch.int64; give a floating-point"),
        ({"coefficients": given(norm=0.5)}, "is float; give a floating-point"),
    ],
)
def test_wrong_coefficients_are_refused_with_what_is_allowed(parameters, message):
    with pytest.raises(InvalidInput, match=message):
        merge_state_dicts("column_linear", models(), parameters=parameters)


def test_an_unknown_phi_is_refused():
    with pytest.raises(InvalidInput, match="did you mean 'tanh'"):
        merge_state_dicts(
            "column_linear", models(), parameters={"coefficients": constant(COLUMNS)}, options={"phi": "tahn"}
        )  # fmt: skip


def test_coefficients_are_passed_through_untouched():
    coefficients = constant(COLUMNS)
    resolved = resolve_parameters("column_linear", {"coefficients": coefficients}, 3)
    assert resolved["coefficients"] == tuple(coefficients)


def test_a_search_space_cannot_name_it(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        "name: s\ngroups: {depth: global}\nmethods: {column_linear: {parameters: {coefficients: {low: 0, high: 1}}}}\n"
    )
    with pytest.raises(InvalidInput, match="tensors, which a search cannot choose"):
        load_space(str(path))
