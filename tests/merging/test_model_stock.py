"""Model Stock: shares worked by hand, by tensor and row, and what the baseline of the same name gives."""

import itertools
import math

import pytest
import torch

from evomerge.baselines.info import ModelStockSettings
from evomerge.baselines.norm_rules import stock_share as share_of_the_baseline
from evomerge.errors import MergeError
from evomerge.merging import merge_state_dicts
from evomerge.merging.model_stock import StockDefinition, row_shares, stock_share
from evomerge.tensors.inner_products import inner_products
from evomerge.tensors.rule_tensors import RuleTensors

BASE = torch.tensor([[10.0, 0.0], [0.0, 10.0]])


def merged(vectors, base=BASE, **options):
    sources = [{"w": base + torch.as_tensor(vector)} for vector in vectors]
    return merge_state_dicts("model_stock", sources, {"w": base}, options=options)["w"]


def test_two_task_vectors_at_sixty_degrees_keep_two_thirds_of_their_mean():
    # cos = 1/2, t = 2 (1/2) / (1 + 1/2) = 2/3
    one, other = [1.0, 0.0], [math.cos(math.pi / 3), math.sin(math.pi / 3)]
    base = torch.zeros(2)
    expected = 2 / 3 * (torch.tensor(one) + torch.tensor(other)) / 2
    assert torch.allclose(merged([one, other], base), expected)


def test_each_row_has_its_own_share_when_filter_wise():
    one, other = (
        [[1.0, 0.0], [1.0, 0.0]],
        [[3.0, 0.0], [0.0, 1.0]],
    )  # parallel in the first row, at right angles in the second
    assert torch.allclose(merged([one, other], filter_wise=True), BASE + torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
    # In all: <one, other> = 3, lengths sqrt(2) and sqrt(10).
    cosine = 3 / math.sqrt(20)
    share = 2 * cosine / (1 + cosine)
    assert torch.allclose(merged([one, other]), BASE + share * torch.tensor([[2.0, 0.0], [0.5, 0.5]]))


def test_the_mean_over_pairs_is_of_cosines_or_of_angles():
    vectors = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]  # cosines 1, 0, 0
    cosines, angles = 1 / 3, math.cos(math.pi / 3)
    base = torch.zeros(2)
    mean = torch.tensor([2 / 3, 1 / 3])
    for filter_wise in (False, True):
        for pair_mean, cosine in (("cosines", cosines), ("angles", angles)):
            found = merged(vectors, base, pair_mean=pair_mean, filter_wise=filter_wise)
            assert torch.allclose(found, 3 * cosine / (1 + 2 * cosine) * mean)


@pytest.mark.parametrize("filter_wise", [False, True])
def test_task_vectors_that_point_away_from_each_other_leave_the_base_or_go_beyond_it(filter_wise):
    one, other, base = [1.0, 0.0], [-0.5, math.sqrt(3) / 2], torch.zeros(2)  # cos = -1/2, t = -1 / (1/2) = -2
    assert merged([one, other], base, filter_wise=filter_wise).tolist() == [0.0, 0.0]
    raw = merged([one, other], base, negative="raw", filter_wise=filter_wise)
    assert torch.allclose(raw, -2 * torch.tensor([0.25, math.sqrt(3) / 4]))
    with pytest.raises(MergeError, match=r"tensor 'w' point away .* opposite: base"):
        merged([[1.0, 0.0], [-1.0, 0.0]], base, negative="raw", filter_wise=filter_wise)


@pytest.mark.parametrize("filter_wise", [False, True])
def test_opposite_task_vectors_may_leave_the_base_alone(filter_wise):
    base, row = torch.ones(2, 2), [[1.0, 1.0], [2.0, 0.0]]
    for options in ({"negative": "raw", "opposite": "base"}, {"semantics": "mergekit"}):
        one, other = torch.tensor(row), -torch.tensor(row)
        assert torch.equal(merged([one, other], base, filter_wise=filter_wise, **options), base)
        nearly = other + torch.tensor([[0.0, 1e-2], [0.0, 1e-2]])
        assert not torch.equal(merged([one, nearly], base, filter_wise=filter_wise, **options), base)


@pytest.mark.parametrize("filter_wise", [False, True])
def test_the_lengths_of_short_task_vectors_count_as_they_are_or_as_a_product_of_one_millionth(filter_wise):
    # Lengths 5e-4 and 5e-4, inner product 2e-7, cosine 0.8; by 1e-6 it is 0.2, and t is 2 * 0.2 / 1.2.
    one, other, base = torch.tensor([3e-4, 4e-4]), torch.tensor([0.0, 5e-4]), torch.zeros(2)
    mean = (one + other) / 2
    for options in ({}, {"short": "exact"}):
        assert torch.allclose(merged([one, other], base, filter_wise=filter_wise, **options), 1.6 / 1.8 * mean)
    for options in ({"short": "clamp"}, {"semantics": "mergekit"}):
        found = merged([one, other], base, filter_wise=filter_wise, **options)
        assert torch.allclose(found, 0.4 / 1.2 * mean, rtol=1e-5, atol=0)
        longer = merged([10 * one, 10 * other], base, filter_wise=filter_wise, **options)
        assert torch.allclose(longer, 16 / 1.8 * mean, rtol=1e-5, atol=0)
        assert torch.equal(merged([one, base], base, filter_wise=filter_wise, **options), base)


@pytest.mark.parametrize("filter_wise", [False, True])
def test_equal_sources_and_one_alone_are_kept_and_nothing_moves_without_task_vectors(filter_wise):
    vector = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    assert torch.allclose(merged([vector] * 3, filter_wise=filter_wise), BASE + vector)
    assert torch.allclose(merged([vector], filter_wise=filter_wise), BASE + vector)
    assert torch.equal(merged([torch.zeros(2, 2)] * 2, filter_wise=filter_wise), BASE)
    assert torch.equal(merged([vector, torch.zeros(2, 2)], filter_wise=filter_wise), BASE)
    assert merged([2.0, 4.0], torch.tensor(1.0), filter_wise=filter_wise).item() == pytest.approx(4.0)


@pytest.mark.parametrize("filter_wise", [False, True])
def test_sources_may_come_in_any_order(filter_wise):
    vectors = [torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)) + 1 for seed in range(3)]
    base = torch.zeros(4, 5)
    expected = merged(vectors, base, filter_wise=filter_wise)
    for order in itertools.permutations(vectors):
        assert torch.allclose(merged(order, base, filter_wise=filter_wise), expected, atol=1e-6)


def test_the_share_is_that_of_the_baseline_and_of_a_tensor_of_one_row():
    vectors = [torch.randn(1, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    tensors = RuleTensors(
        names=("w",),
        base={"w": torch.zeros(1, 6)},
        sources=[{"w": each} for each in vectors],
        parameters={},
        options={},
    )
    products = inner_products(tensors, "w", of="task_vectors")
    for pair_mean, negative in itertools.product(("cosines", "angles"), ("clip", "raw")):
        definition = StockDefinition(pair_mean=pair_mean, negative=negative)
        share = stock_share(products, definition)
        settings = ModelStockSettings(pair_mean=pair_mean, negative=negative)
        assert share_of_the_baseline(products, settings) == share
        shares, known = row_shares(vectors, definition)
        assert bool(known.all())
        assert shares.tolist() == pytest.approx([share])
