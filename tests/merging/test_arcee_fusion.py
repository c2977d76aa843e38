"""Arcee fusion: importances by hand, exact quantiles, and where nothing or everything is exceptional."""

import math

import numpy as np
import pytest
import torch

from evomerge.errors import InvalidInput, MergeError
from evomerge.merging import merge_state_dicts
from evomerge.merging.arcee_fusion import importance, nearest_ranks, quantile
from evomerge.tensors import rule_tensors


def merged(first, second, **arguments):
    return merge_state_dicts("arcee_fusion", [{"w": torch.as_tensor(each)} for each in (first, second)], **arguments)[
        "w"
    ]


def test_the_importance_is_the_change_times_the_divergence_of_its_row():
    one, other = torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([[math.log(3.0), 0.0], [1.0, 2.0]])
    # softmax(B) = (3/4, 1/4) against (1/2, 1/2); the second row has not changed.
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert importance(one, other)[0].tolist() == pytest.approx([math.log(3.0) * divergence, 0.0])
    assert importance(one, other)[1].tolist() == [0.0, 0.0]


def test_only_what_changed_exceptionally_is_taken():
    one = torch.zeros(1, 9)
    other = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 5.0]])
    # All in one row, so S is in the ratio of the changes: median 0.5, quartiles 0.3 and 0.7, threshold 1.1.
    assert merged(one, other).tolist() == [[0.0] * 8 + [5.0]]
    for largest, taken in ((2.74, 0.0), (2.76, 2.76)):  # on either side of 1.25 + 1.5 (1.75 - 0.75)
        changes = torch.tensor([[0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, largest]])
        assert merged(one, changes).tolist() == [[0.0] * 8 + [pytest.approx(taken)]]


def test_a_row_that_is_only_shifted_has_the_same_softmax():
    one = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    other = one + torch.tensor([[0.0], [4.0], [0.0]])
    other[2, 0] = 9.0
    found = merged(one, other)
    assert found[2].tolist() == [9.0, 2.0, 3.0]


@pytest.mark.parametrize("piece", [3, 1 << 17])
def test_quantiles_are_of_all_elements(piece, monkeypatch):
    monkeypatch.setattr(rule_tensors, "CPU_PIECE", piece)
    one, other = (torch.randn(7, 9, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    logs = [each.double().log_softmax(1) for each in (one, other)]
    scores = (other - one).abs().double() * (logs[1].exp() * (logs[1] - logs[0])).sum(1, keepdim=True)
    lower, middle, upper = np.quantile(scores.numpy(), [0.25, 0.5, 0.75])
    expected = torch.where(scores >= middle + 1.5 * (upper - lower), other, one)
    assert 0 < int((expected == other).sum()) < 63 / 4
    assert torch.equal(merged(one, other), expected)


@pytest.mark.parametrize("elements", [1, 2, 4, 5, 10])
def test_a_quantile_lies_between_the_nearest_numbers(elements):
    numbers = [float(each**2) for each in range(elements)]
    for share in (0.25, 0.5, 0.75):
        ordered = {rank: numbers[rank - 1] for rank in nearest_ranks(share, elements)}
        assert quantile(ordered, share, elements) == pytest.approx(np.quantile(numbers, share))


def test_the_lower_of_two_numbers_is_one_of_them():
    numbers = {rank: float(rank - 1) for rank in range(1, 13)}
    found = [quantile(numbers, share, 12, lower=True) for share in (0.25, 0.5, 0.75)]
    assert found == [2.0, 5.0, 8.0]
    changes = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 12.1]])
    # Interpolated, the threshold is 4.5 + 1.5 (6.25 - 2.75) = 9.75; of the lower elements 4 + 1.5 (6 - 2) = 10.
    for largest, options, taken in (
        (9.9, {}, True),
        (9.9, {"quantiles": "lower"}, False),
        (10.1, {"quantiles": "lower"}, True),
    ):
        changes[0, -1] = largest
        assert bool(merged(torch.zeros(1, 8), changes, options=options)[0, -1] != 0) == taken


def test_equal_sources_are_themselves_and_one_element_is_the_second():
    one = torch.tensor([[1.0, -2.0]])
    assert torch.equal(merged(one, one), one)
    assert merged(1.0, 2.0).item() == 2.0  # the softmax of one element says nothing: every importance is 0
    assert torch.equal(merged(torch.zeros(0, 3), torch.zeros(0, 3)), torch.zeros(0, 3))


def test_a_vector_is_one_row():
    one, other = (torch.randn(40, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4))
    assert torch.equal(merged(one, other), merged(one[None], other[None])[0])


def test_what_is_not_finite_is_never_hidden():
    one = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    bad = one.clone()
    bad[2, 2] = math.nan
    for sources in ((one, bad), (bad, one)):
        with pytest.raises(MergeError, match="not finite in tensor 'w'"):
            merged(*sources)


def test_a_third_source_is_refused():
    with pytest.raises(InvalidInput, match="exactly 2 sources"):
        merge_state_dicts("arcee_fusion", [{"w": torch.ones(1)}] * 3)
