"""SCE: worked by hand step by step, where nothing varies, and whatever the order of the sources."""

import itertools
import math

import pytest
import torch

from evomerge.elementwise.sce import plan_sce, selected_elements
from evomerge.errors import MergeError
from evomerge.merging import RuleTensors, merge_rule, merge_state_dicts
from evomerge.methods import validate
from evomerge.tensors import rule_tensors, variance_bins
from evomerge.tensors.selection import merge_selected, variance


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


def test_of_elements_that_do_not_vary_an_exact_share_has_none():
    equal, base = {"w": torch.tensor([1.0, -2.0, 0.0])}, {"w": torch.zeros(3)}
    apart = {"w": torch.tensor([1.5, -2.0, 0.0])}  # one element varies
    broken = {"w": torch.tensor([math.nan, -2.0, 0.0])}

    def found(*sources, share=0.5):
        options = {"semantics": "mergekit"}
        return merge_state_dicts("sce", sources, base, {"select_topk": share}, options)["w"].tolist()

    for sources in ([equal, equal], [equal], [equal, apart]):
        assert found(*sources) == [0.0, 0.0, 0.0]
        factors = plan_sce(tensors_of(sources, base, 0.5, {"semantics": "mergekit"})).factors("w")
        assert all(each.threshold == math.inf for each in factors)
    assert found(equal, apart, share=0.999) == [0.0, 0.0, 0.0]
    assert found(equal, equal, share=1.0) == [1.0, -2.0, 0.0]
    with pytest.raises(MergeError, match="not finite"):
        found(equal, broken)


def test_values_that_cancel_leave_the_base():
    assert merged([[1.0, 1.0], [-1.0, 1.0]]).tolist() == [0.0, 1.0]


def test_weights_of_short_task_vectors_are_their_shares_or_equal_ones():
    def shares(taus, share=1.0, **options):
        sources, base = [{"w": tau} for tau in taus], {"w": torch.zeros_like(taus[0])}
        tensors = tensors_of(sources, base, share, options)
        found = selected_elements(tensors, "w").shares
        assert [each.weight for each in plan_sce(tensors).factors("w")] == found
        return found

    one, two = torch.full((100,), 8e-4), torch.full((100,), 4e-4)  # mean squares 6.4e-7 + 1.6e-7 < 1e-6
    for options in ({}, {"small_energy": "shares"}):
        assert shares([one, two], **options) == pytest.approx([0.8, 0.2])
    for options in ({"small_energy": "equal"}, {"semantics": "mergekit"}):
        assert shares([one, two], **options) == [0.5, 0.5]
        assert shares([1.2 * one, 1.2 * two], **options) == pytest.approx([0.8, 0.2])
        assert shares([one * math.nan, two], **options) == pytest.approx([math.nan] * 2, nan_ok=True)
    # Of long vectors a tenth is selected, and the mean is over all elements: (1.28e-6 + 0.32e-6) / 10.
    long = [1.3 * one, 1.3 * two]
    for tau in long:
        tau[:10] *= 1.1
    assert shares(long, 0.1, semantics="mergekit") == [0.5, 0.5]
    assert shares(long, 1.0, semantics="mergekit") == pytest.approx([0.8, 0.2])


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


def tensors_of(models, base, share, options=None, cache=None):
    parameters, options = validate("sce", {"select_topk": share}, options or {}, len(models))
    return RuleTensors(
        names=tuple(base),
        base=base,
        sources=tuple(models),
        parameters=parameters,
        options=options,
        cache={} if cache is None else cache,
    )


def test_bins_are_filled_once_for_all_shares(monkeypatch):
    filled, original = [], variance_bins.VarianceBins._fill
    monkeypatch.setattr(variance_bins.VarianceBins, "_fill", lambda *given: (filled.append(1), original(*given))[1])
    sources, cache = [{"w": torch.tensor(ONE)}, {"w": torch.tensor(TWO)}], {}
    for share in (0.5, 0.4, 0.5):
        tensors = tensors_of(sources, {"w": torch.zeros(4)}, share, cache=cache)
        assert dict(merge_rule("sce", tensors))["w"].tolist() == pytest.approx([0.0, -2.0, 0.0, 0.0])
    assert len(filled) == 1


def plainly_selected(taus, share, *, exact):
    """Selected elements, and the energies of the sources there, by sorting."""
    varied = variance(taus)
    kept = int(share * int(varied.count_nonzero()))
    if exact:
        chosen = torch.zeros(len(varied), dtype=torch.bool)
        chosen[varied.argsort(descending=True, stable=True)[:kept]] = True
    else:
        chosen = varied >= varied.sort().values[-max(1, kept)]
    return chosen, [math.fsum((tau[chosen].double() ** 2).tolist()) for tau in taus]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bins", [2, 256])
@pytest.mark.parametrize("grid", [None, 0.5])
@pytest.mark.parametrize("exact", [False, True])
def test_selection_and_energies_are_those_of_sorting(exact, grid, bins, dtype, monkeypatch):
    monkeypatch.setattr(variance_bins, "BINS", bins)
    monkeypatch.setattr(variance_bins, "SCANNED", 1000)
    monkeypatch.setattr(variance_bins, "SAMPLED", 200)
    generator = torch.Generator().manual_seed(3)
    taus = [torch.randn(5000, generator=generator, dtype=dtype) ** 3 for _ in range(3)]
    if grid is not None:  # many are tied, and many do not vary
        taus = [(tau / grid).round() * grid for tau in taus]
        for tau in taus:
            tau[::3] = 1.0
    base, options = {"w": torch.zeros(5000, dtype=dtype)}, {"kept_rule": "exact"} if exact else {}
    for share in (0.003, 0.1, 0.5, 0.97):
        found = selected_elements(tensors_of([{"w": tau} for tau in taus], base, share, options), "w")
        chosen, energies = plainly_selected(taus, share, exact=exact)
        inside = variance(taus) >= found.least
        if found.end is not None:
            inside &= (variance(taus) > found.least) | (torch.arange(5000) < found.end)
        assert torch.equal(inside, chosen)
        assert found.shares == pytest.approx([energy / sum(energies) for energy in energies], rel=1e-12)


def test_energies_of_an_outlier_and_of_what_is_small_beside_it():
    taus = [torch.full((4096,), 1e-6), torch.full((4096,), 2e-6)]
    taus[0][0], taus[1][0] = 3.0, 1.0
    base = {"w": torch.zeros(4096)}
    found = selected_elements(tensors_of([{"w": tau} for tau in taus], base, 1.0), "w")
    energies = [math.fsum((tau.double() ** 2).tolist()) for tau in taus]
    assert found.shares == pytest.approx([energy / sum(energies) for energy in energies], rel=1e-14)
