"""Multi-SLERP and the Karcher mean: worked by hand, on the sphere, and where directions are missing or cancel."""

import itertools
import math

import pytest
import torch

from evomerge.elementwise.karcher import karcher_coefficients
from evomerge.elementwise.multislerp import multislerp_coefficients
from evomerge.errors import InvalidInput, MergeError
from evomerge.merging import merge_state_dicts

EAST, NORTH = {"w": torch.tensor([[2.0, 0.0]])}, {"w": torch.tensor([[0.0, 4.0]])}


def models(n, shape=(5, 7), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [{"w": torch.randn(shape, generator=generator, dtype=torch.float64)} for _ in range(n)]


def merged(method, sources, base=None, weight=1.0, **options):
    return merge_state_dicts(method, sources, base, {"weight": weight}, options)["w"]


def test_half_of_a_right_angle_at_the_mean_length():
    # Both means lie at 45 degrees; the lengths 2 and 4 have the mean 3.
    for method in ("multislerp", "karcher"):
        half = 3 / math.sqrt(2)
        assert merged(method, [EAST, NORTH]).flatten().tolist() == pytest.approx([half, half])


def test_unequal_weights_turn_by_the_chord_in_one_and_by_the_angle_in_the_other():
    # Weights 3 : 1, so the length is 2.5. d = (3/4, 1/4) has length sqrt(10)/4; the geodesic has 22.5 degrees.
    by_chord = [2.5 * 3 / math.sqrt(10), 2.5 / math.sqrt(10)]
    by_angle = [2.5 * math.cos(math.pi / 8), 2.5 * math.sin(math.pi / 8)]
    assert merged("multislerp", [EAST, NORTH], weight=[3.0, 1.0]).flatten().tolist() == pytest.approx(by_chord)
    assert merged("karcher", [EAST, NORTH], weight=[3.0, 1.0]).flatten().tolist() == pytest.approx(by_angle, abs=1e-5)


def test_only_the_ratios_of_the_weights_matter():
    sources = models(3)
    for method in ("multislerp", "karcher"):
        one, ten = (merged(method, sources, weight=[k, 2 * k, 4 * k]) for k in (1.0, 10.0))
        assert torch.allclose(one, ten, rtol=1e-12)


def test_task_vectors_are_interpolated_on_the_base():
    base = {"w": torch.tensor([[10.0, 10.0]])}
    moved = [{"w": base["w"] + source["w"]} for source in (EAST, NORTH)]
    found = merged("multislerp", moved, base, vectors="task_vectors")
    assert torch.allclose(found, base["w"] + merged("multislerp", [EAST, NORTH]))
    assert torch.equal(merged("multislerp", moved, base), merged("multislerp", moved))  # by default it is not looked at
    with pytest.raises(InvalidInput, match="give the base"):
        merged("multislerp", moved, vectors="task_vectors")


@pytest.mark.parametrize("method", ["multislerp", "karcher"])
def test_sources_may_come_in_any_order_and_equal_ones_are_what_they_are(method):
    sources, weights = models(3), [1.0, 2.0, 4.0]
    expected = merged(method, sources, weight=weights)
    for order in itertools.permutations(range(3)):
        found = merged(method, [sources[i] for i in order], weight=[weights[i] for i in order])
        assert torch.allclose(found, expected, rtol=1e-9)
    assert torch.allclose(merged(method, [sources[0]] * 3), sources[0]["w"], rtol=1e-12)
    assert torch.equal(merged(method, sources[:1]), sources[0]["w"])
    assert torch.allclose(merged(method, sources, weight=[0.0, 1.0, 0.0]), sources[1]["w"], rtol=1e-12)


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.8])
def test_the_karcher_mean_of_two_is_slerp_between_units(weight):
    units = [{"w": source["w"] / source["w"].norm()} for source in models(2)]
    expected = merge_state_dicts("slerp", units, parameters={"t": weight})["w"]
    assert torch.allclose(merged("karcher", units, weight=[1 - weight, weight]), expected, atol=1e-5)


def test_the_karcher_mean_is_where_the_pulls_balance():
    sources, weights = models(4), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    units = torch.stack([source["w"].flatten() / source["w"].norm() for source in sources])
    mean = merged("karcher", sources, weight=weights.tolist()).flatten()
    length = sum(weight * source["w"].norm() for weight, source in zip(weights, sources, strict=True))
    assert mean.norm() == pytest.approx(float(length), rel=1e-9)
    cosines = units @ (mean / mean.norm())
    logarithms = (cosines.acos() / (1 - cosines**2).sqrt())[:, None] * (units - cosines[:, None] * mean / mean.norm())
    assert float((weights @ logarithms).norm()) < 1e-5


def test_multislerp_is_the_tangent_step_that_mergekit_writes():
    sources, weights = models(3), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    vectors = torch.stack([source["w"].flatten() for source in sources])
    units = vectors / vectors.norm(dim=1, keepdim=True)
    middle = (weights @ units) / (weights @ units).norm()
    tangent = weights @ (units - (units @ middle)[:, None] * middle)
    assert float(tangent.norm()) < 1e-14
    expected = (weights @ vectors.norm(dim=1)) * middle
    assert torch.allclose(merged("multislerp", sources, weight=weights.tolist()).flatten(), expected, rtol=1e-12)


@pytest.mark.parametrize("method", ["multislerp", "karcher"])
def test_a_zero_vector_has_no_direction_but_its_length_counts(method):
    zero = {"w": torch.zeros(1, 2)}
    assert merged(method, [EAST, zero]).flatten().tolist() == pytest.approx([1.0, 0.0])
    assert merged(method, [zero, zero]).abs().sum() == 0


def test_directions_that_cancel_are_refused_by_the_name_of_the_tensor():
    west = {"w": -EAST["w"]}
    for method in ("multislerp", "karcher"):
        with pytest.raises(MergeError, match="directions of tensor 'w' cancel"):
            merged(method, [EAST, west])
    assert merged("multislerp", [EAST, west], opposite="linear of two").abs().sum() == 0
    with pytest.raises(MergeError, match="cancel"):
        merged("multislerp", [*models(2), *({"w": -each["w"]} for each in models(2))], opposite="linear of two")


def test_the_coefficients_need_inner_products_alone():
    products = ((4.0, 0.0), (0.0, 16.0))
    assert multislerp_coefficients(products, [0.5, 0.5]) == pytest.approx([3 / math.sqrt(8), 3 / math.sqrt(32)])
    assert karcher_coefficients(products, [0.5, 0.5]) == pytest.approx([3 / math.sqrt(8), 3 / math.sqrt(32)])
