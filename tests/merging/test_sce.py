"""SCE: worked by hand step by step, where nothing varies, and whatever the order of the sources."""

import itertools

import pytest
import torch

from evomerge.elementwise.sce import merge_selected, variance
from evomerge.merging import RuleTensors, merge_rule, merge_state_dicts
from evomerge.methods import validate
from evomerge.tensors import rule_tensors


def merged(taus, share=1.0, base=0.0):
    sources = [{"w": torch.as_tensor(tau) + base} for tau in taus]
    return merge_state_dicts("sce", sources, {"w": torch.full_like(sources[0]["w"], base)}, {"select_topk": share})["w"]


ONE, TWO = [3.0, 1.0, 2.0, 0.0], [1.0, -2.0, 2.0, 0.0]
# Variances 1, 2.25, 0, 0.


def test_all_steps_by_hand():
    # Nothing is deselected. Energies 14 and 9, so c = 14/23 and 9/23. In the second element the sign is minus.
    expected = [(14 * 3 + 9 * 1) / 23, -2.0, 2.0, 0.0]
    assert merged([ONE, TWO]).tolist() == pytest.approx(expected)
    assert merged([ONE, TWO], base=5.0).tolist() == pytest.approx([5 + each for each in expected])


def test_a_sum_of_zero_keeps_nothing_or_what_is_positive():
    taus = [torch.tensor([1.0, 3.0, 0.0]), torch.tensor([-1.0, 4.0, 0.0])]
    sources, base = [{"w": tau} for tau in taus], {"w": torch.zeros(3)}
    for options, first in (({}, 0.0), ({"zero_sum": "erase"}, 0.0), ({"semantics": "mergekit"}, 1.0)):
        found = merge_state_dicts("sce", sources, base, options=options)["w"].tolist()
        assert found == pytest.approx([first, (10 * 3 + 17 * 4) / 27, 0.0])


def test_the_share_is_of_the_variances_that_are_not_zero():
    # Two vary. Half of them is the second element alone: c = 1/5 and 4/5, and the first source has the other sign.
    assert merged([ONE, TWO], share=0.5).tolist() == pytest.approx([0.0, -2.0, 0.0, 0.0])
    # At least one is selected; energies of the first two elements: 10 and 5.
    assert merged([ONE, TWO], share=0.0).tolist() == pytest.approx([0.0, -2.0, 0.0, 0.0])
    three = [*ONE, 9.0], [*TWO, 9.5]  # a variance of 1/16
    assert merged(three, share=0.7).tolist() == pytest.approx([(10 * 3 + 5 * 1) / 15, -2.0, 0.0, 0.0, 0.0])


def test_weights_follow_the_selection():
    selected = [torch.tensor([3.0, 1.0]), torch.tensor([1.0, -2.0])]
    assert merge_selected(selected, [2 / 3, 1 / 3]).tolist() == pytest.approx([7 / 3, -2.0])
    assert variance(selected).tolist() == [1.0, 2.25]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_equal_sources_are_kept_and_nothing_moves_without_task_vectors(share):
    tau = [1.0, -2.0, 0.0]
    assert merged([tau] * 3, share).tolist() == pytest.approx(tau)
    assert merged([tau], share).tolist() == pytest.approx(tau)
    assert merged([[0.0] * 3] * 2, share, base=4.0).tolist() == [4.0] * 3
    assert merged([2.0, 2.0], share).item() == pytest.approx(2.0)


def test_values_that_cancel_leave_the_base():
    assert merged([[1.0, 1.0], [-1.0, 1.0]]).tolist() == [0.0, 1.0]


def test_sources_may_come_in_any_order():
    taus = [torch.randn(6, 9, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    expected = merged(taus, 0.4)
    for order in itertools.permutations(taus):
        assert torch.allclose(merged(order, 0.4), expected, atol=1e-6)


def test_the_selected_number_is_the_share():
    taus = [torch.randn(1000, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    for share in (0.1, 0.25, 0.5):
        assert int(merged(taus, share).count_nonzero()) == 1000 * share


@pytest.mark.parametrize("piece", [3, 1 << 17])
def test_of_elements_that_vary_alike_all_are_selected_or_the_first_as_many_as_the_share_says(piece, monkeypatch):
    monkeypatch.setattr(rule_tensors, "CPU_PIECE", piece)
    sources = [{"w": torch.tensor([1.0, 2.0, -1.0, 1.0, 0.0, 0.0])}, {"w": torch.zeros(6)}]
    base = {"w": torch.zeros(6)}

    def selected(share, **options):
        found = merge_state_dicts("sce", sources, base, {"select_topk": share}, options)["w"]
        return [place for place, each in enumerate(found.tolist()) if each]

    # Four vary, three of them alike.
    assert selected(0.5) == [0, 1, 2, 3]
    assert selected(0.5, semantics="mergekit") == [0, 1]
    assert selected(0.75, semantics="mergekit") == [0, 1, 2]
    assert selected(0.0, semantics="mergekit") == []


def test_thresholds_are_measured_once_for_a_share(monkeypatch):
    import evomerge.elementwise.sce as module

    counted = []
    original = module.kth_smallest_magnitude
    monkeypatch.setattr(module, "kth_smallest_magnitude", lambda *given: (counted.append(1), original(*given))[1])
    sources, cache = [{"w": torch.tensor(ONE)}, {"w": torch.tensor(TWO)}], {}
    for share in (0.5, 0.4, 0.5):
        parameters, options = validate("sce", {"select_topk": share}, {}, 2)
        tensors = RuleTensors(
            names=("w",),
            base={"w": torch.zeros(4)},
            sources=sources,
            parameters=parameters,
            options=options,
            cache=cache,
        )
        assert dict(merge_rule("sce", tensors))["w"].tolist() == pytest.approx([0.0, -2.0, 0.0, 0.0])
    assert len(counted) == 2
