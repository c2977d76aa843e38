"""Powers of two and tangents: right to a few units in the last place, and the same bits in any division."""

from __future__ import annotations

import pytest
import torch

from evomerge.tensors.elementary import hyperbolic_tangent, power_of_two, tangent_up_to_one

ULP = 2.0**-23


@pytest.mark.parametrize(
    ("function", "exact", "x"),
    [
        (power_of_two, torch.exp2, torch.linspace(-126, 127, 400_001)),
        (hyperbolic_tangent, torch.tanh, torch.linspace(-30, 30, 400_001)),
        (hyperbolic_tangent, torch.tanh, torch.logspace(-37, 1, 400_001)),
        (tangent_up_to_one, torch.tanh, torch.linspace(-1, 1, 400_001)),
        (tangent_up_to_one, torch.tanh, torch.logspace(-37, 0, 400_001)),
    ],
)
def test_float32_is_right_to_three_units_in_the_last_place(function, exact, x):
    expected = exact(x.double())
    wrong = (function(x).double() - expected).abs() / expected.abs().clamp(min=1e-300)
    assert float(wrong.max()) < 3 * ULP


@pytest.mark.parametrize("function", [power_of_two, hyperbolic_tangent, tangent_up_to_one])
def test_every_division_into_pieces_has_the_same_bits(function):
    x = torch.randn(1003, generator=torch.Generator().manual_seed(0)) * 3
    whole = function(x)
    for size in (1, 7, 16, 33):
        assert torch.equal(torch.cat([function(piece) for piece in x.split(size)]), whole)


def test_the_tangent_is_odd_ends_at_one_and_lets_through_what_is_no_number():
    x = torch.tensor([0.0, 1e-30, 0.3, 5.0, 1e30, float("inf")])
    assert torch.equal(hyperbolic_tangent(-x), -hyperbolic_tangent(x))
    assert hyperbolic_tangent(x)[-2:].tolist() == [1.0, 1.0]
    assert bool(hyperbolic_tangent(torch.tensor([float("nan")])).isnan())
    assert bool(power_of_two(torch.tensor([float("nan")])).isnan())


def test_float64_has_the_precision_of_float64():
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    assert torch.equal(power_of_two(x), x.exp2())
    assert torch.equal(hyperbolic_tangent(x), x.tanh())
