"""Task vectors with a coefficient per column: `task_arithmetic` where the coefficients are constant."""

from __future__ import annotations

import pytest
import torch

from evomerge.elementwise.column_arithmetic import write_column_arithmetic
from evomerge.errors import InvalidInput
from evomerge.merging import RuleTensors, merge_state_dicts
from evomerge.spaces import load_space

SHAPES = {"linear": (30, 8), "conv": (8, 30), "norm": (8,), "scalar": (), "empty": (0, 4), "cube": (3, 4, 5)}
COLUMNS = {"linear": (8,), "conv": (8, 1), "norm": (8,), "scalar": (), "empty": (4,), "cube": (4, 1)}
WEIGHTS = (0.2, 1 / 3, -0.7)


def models(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [
        {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}
        for _ in range(1 + len(WEIGHTS))
    ]


def constant(shapes, values):
    return [{name: torch.full(shape, value, dtype=torch.float64) for name, shape in shapes.items()} for value in values]


@pytest.mark.parametrize("shapes", [dict.fromkeys(SHAPES, ()), COLUMNS, SHAPES], ids=["scalars", "columns", "elements"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("in_weights", [True, False], ids=["weights", "coefficients"])
def test_constant_coefficients_give_the_bits_of_task_arithmetic(shapes, dtype, in_weights):
    base, *sources = models(dtype)
    values, weights = ((1.0,) * 3, WEIGHTS) if in_weights else (WEIGHTS, (1.0,) * 3)
    parameters = {"weight": weights, "coefficients": constant(shapes, values)}
    columns = merge_state_dicts("column_arithmetic", sources, base, parameters=parameters)
    plain = merge_state_dicts("task_arithmetic", sources, base, parameters={"weight": WEIGHTS})
    assert all(torch.equal(columns[name], plain[name]) for name in SHAPES)


def test_columns_are_scaled_by_coefficient_and_weight():
    base, one, two = ({"w": torch.tensor(rows)} for rows in ([[1.0, 1.0]], [[2.0, 3.0]], [[1.0, 5.0]]))
    coefficients = [{"w": torch.tensor([1.0, 0.5])}, {"w": torch.tensor([3.0, -1.0])}]
    merged = merge_state_dicts(
        "column_arithmetic", [one, two], base, parameters={"weight": [1.0, 2.0], "coefficients": coefficients}
    )
    assert merged["w"].tolist() == [[1 + 1 * 1 + 2 * 3 * 0, 1 + 0.5 * 2 + 2 * -1 * 4]]


@pytest.mark.parametrize("piece", [1, 7, 16, 10**6])
def test_pieces_change_no_bit(monkeypatch, piece):
    base, *sources = models()
    parameters = {"coefficients": constant(COLUMNS, WEIGHTS)}
    parameters["coefficients"][1]["linear"] = torch.linspace(-1, 1, 8)
    expected = merge_state_dicts("column_arithmetic", sources, base, parameters=parameters)
    monkeypatch.setattr("evomerge.elementwise.column_linear.CPU_PIECE", piece)
    found = merge_state_dicts("column_arithmetic", sources, base, parameters=parameters)
    assert all(torch.equal(found[name], expected[name]) for name in SHAPES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_written_in_place_it_is_the_merge_rounded_once(dtype):
    base, *sources = models()
    coefficients = constant(COLUMNS, WEIGHTS)
    merged = merge_state_dicts("column_arithmetic", sources, base, parameters={"coefficients": coefficients})
    live = {name: torch.empty(shape, dtype=dtype) for name, shape in SHAPES.items()}
    tensors = RuleTensors(
        names=tuple(SHAPES),
        base=base,
        sources=sources,
        parameters={"weight": (1.0,) * 3, "coefficients": coefficients},
        options={},
    )
    write_column_arithmetic(tensors, live)
    assert all(torch.equal(live[name], merged[name].to(dtype)) for name in SHAPES)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "has no default; give it"),
        ({"coefficients": [{}] * 3}, "source 0 have no entry for tensor 'conv'"),
        ({"coefficients": constant(COLUMNS, WEIGHTS), "weight": [1.0]}, "1 values for 3 sources"),
    ],
)
def test_wrong_coefficients_are_refused_with_what_is_allowed(parameters, message):
    base, *sources = models()
    with pytest.raises(InvalidInput, match=message):
        merge_state_dicts("column_arithmetic", sources, base, parameters=parameters)


def test_without_a_base_there_are_no_task_vectors():
    with pytest.raises(InvalidInput, match="give the base model"):
        merge_state_dicts("column_arithmetic", models(), parameters={"coefficients": constant(COLUMNS, (1.0,) * 4)})


def test_a_search_cannot_choose_coefficients(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        "name: s\ngroups: {depth: global}\nmethods: {column_arithmetic: {parameters: {weight: {low: 0, high: 1}}}}\n"
    )
    with pytest.raises(InvalidInput, match="tensors, which a search cannot choose"):
        load_space(str(path))
