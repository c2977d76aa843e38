"""DELLA: ranks and probabilities by hand, the kept share, the mean over masks, and what it is without spread."""

import itertools

import pytest
import torch

from evomerge.merging import della, merge_rule, merge_state_dicts
from evomerge.merging.della import half_width, magnitude_ranks, rank_line
from evomerge.methods import validate
from evomerge.tensors.masks import mask_key, uniform_bits
from evomerge.tensors.rule_tensors import RuleTensors

METHODS = ["della", "della_linear"]


def merged(taus, method="della_linear", base=0.0, parameters=None, seed=0, **options):
    sources = [{"w": torch.as_tensor(tau) + base} for tau in taus]
    base = {"w": torch.full_like(sources[0]["w"], base)}
    return merge_state_dicts(method, sources, base, {"weight": 1.0, **(parameters or {})}, options, seed=seed)["w"]


def ranks_of(tau):
    source = {"w": torch.as_tensor(tau)}
    base = {"w": torch.zeros_like(source["w"])}
    return magnitude_ranks(RuleTensors(names=("w",), base=base, sources=[source], parameters={}, options={}), 0, "w")


def test_ranks_are_by_row_from_the_smallest_and_ties_by_index():
    ranks, width = ranks_of([[3.0, -1.0, 2.0], [0.0, 0.0, -5.0]])
    assert (ranks.tolist(), width) == ([2, 0, 1, 0, 1, 2], 3)
    assert ranks_of([3.0, -1.0])[0].tolist() == [1, 0]
    assert ranks_of(torch.tensor(7.0))[0].tolist() == [0]
    assert ranks_of([[[2.0], [1.0]], [[3.0], [4.0]]])[0].tolist() == [1, 0, 0, 1]


def test_probabilities_rise_evenly_around_the_density():
    slope, least = rank_line(0.4, half_width(0.4, 0.5), 3)
    assert [slope * rank + least for rank in (2, 0, 1)] == pytest.approx([0.6, 0.2, 0.4])
    assert half_width(0.9, 0.5) == pytest.approx(0.05)
    assert rank_line(0.4, 0.2, 1) == (0.0, 0.4)


def test_masks_are_those_of_the_key_and_survivors_are_divided_by_their_probability():
    tau = torch.tensor([[4.0, -1.0, 2.0, 3.0]])
    found = merged([tau], parameters={"density": 0.5, "spread": 0.6}, seed=3)
    p = [0.8, 0.2, 0.4, 0.6]
    uniform = (uniform_bits(mask_key(3, 0, "w"), 0, 4).double() / 2**24).tolist()
    expected = [t / q if u >= 1 - q else 0.0 for t, q, u in zip(tau[0].tolist(), p, uniform, strict=True)]
    assert found[0].tolist() == pytest.approx(expected)


def test_without_spread_it_is_dare():
    taus = [torch.randn(20, 30, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    sources, base = [{"w": tau} for tau in taus], {"w": torch.zeros(20, 30)}
    for ours, theirs in (("1/p", "1/(1-p)"), ("none", "none"), ("l1_match", "l1_match")):
        dare = merge_state_dicts(
            "dare_linear", sources, base, {"drop_rate": 0.75, "weight": [1.0, 0.5]}, {"rescale": theirs}, seed=5
        )
        found = merged(taus, parameters={"density": 0.25, "spread": 0.0, "weight": [1.0, 0.5]}, seed=5, rescale=ours)
        assert torch.allclose(found, dare["w"])


@pytest.mark.parametrize("method", METHODS)
def test_at_density_one_nothing_is_dropped(method):
    taus = [torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    parameters = {"weight": [0.5, 1.0, 1.5]}
    reference = {
        "della_linear": ("task_arithmetic", parameters, {}),
        "della": ("ties", {**parameters, "density": 1.0}, {"zero_sign": "plus", "trim_scope": "tensor"}),
    }[method]
    expected = merged(taus, reference[0], parameters=reference[1], **reference[2])
    for spread in (0.0, 1.0):
        given = {**parameters, "density": 1.0, "spread": spread}
        assert torch.equal(merged(taus, method, parameters=given), expected)


def test_the_share_that_is_kept_is_the_density_and_large_elements_are_kept_more_often():
    tau = torch.arange(1.0, 101.0).repeat(2000, 1)
    kept = merged([tau], parameters={"density": 0.3, "spread": 0.8}) != 0
    assert float(kept.double().mean()) == pytest.approx(0.3, abs=0.005)
    by_rank = kept.double().mean(0)
    expected = 0.06 + 0.48 * torch.arange(100) / 99
    assert float((by_rank - expected).abs().max()) < 0.05  # four standard deviations of 2000 draws


def test_the_mean_over_masks_is_the_task_vector():
    tau = torch.tensor([[1.0, -2.0, 3.0, -4.0]]).repeat(20_000, 1)
    mean = merged([tau], parameters={"density": 0.5, "spread": 0.5}).double().mean(0)
    assert mean.tolist() == pytest.approx([1.0, -2.0, 3.0, -4.0], abs=0.08)


def test_the_l1_norm_of_each_tensor_is_restored():
    tau = torch.randn(30, 40, generator=torch.Generator().manual_seed(1))
    found = merged([tau], parameters={"density": 0.3}, rescale="l1_match")
    assert float(found.abs().sum()) == pytest.approx(float(tau.abs().sum()), rel=1e-5)
    unscaled = merged([tau], parameters={"density": 0.3}, rescale="none")
    assert torch.equal(unscaled[unscaled != 0], tau[unscaled != 0])


@pytest.mark.parametrize("method", METHODS)
def test_degenerate_tensors(method):
    for density, spread in itertools.product((0.0, 0.5, 1.0), (0.0, 1.0)):
        given = {"density": density, "spread": spread}
        assert merged([[[0.0, 0.0]]] * 2, method, base=2.0, parameters=given).tolist() == [[2.0, 2.0]]
        for rescale in ("1/p", "l1_match", "none"):
            one = merged([4.0], method, parameters=given, rescale=rescale).item()
            assert one in (0.0, 4.0, 8.0)
            column = merged([[[1.0], [2.0]]], method, parameters=given, rescale=rescale)
            assert bool(column.isfinite().all())
    assert merged([[1.0, 2.0]], method, base=1.0, parameters={"density": 0.0}).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("method", METHODS)
def test_the_masks_belong_to_seed_source_and_name(method):
    tau = torch.randn(10, 10, generator=torch.Generator().manual_seed(2))
    one, two = (merged([tau, torch.zeros(10, 10)], method, seed=seed) for seed in (1, 2))
    assert not torch.equal(one, two)
    assert torch.equal(one, merged([tau, torch.zeros(10, 10)], method, seed=1))
    second = merged([torch.zeros(10, 10), tau], method, seed=1)
    assert not torch.equal(one != 0, second != 0)


@pytest.mark.parametrize("room", [della.KEPT_BYTES, 0])
def test_rows_are_sorted_once_for_all_candidates_where_there_is_room_for_their_ranks(room, monkeypatch):
    base = {"w": torch.zeros(3, 4)}
    sources = [{"w": torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))} for seed in range(2)]
    calls, cache = [], {}
    monkeypatch.setattr(della, "KEPT_BYTES", room)
    monkeypatch.setattr(
        della, "magnitude_ranks", lambda *given, real=magnitude_ranks: (calls.append(given[1:]), real(*given))[1]
    )

    def candidate(density, once=False):
        parameters, options = validate("della", {"density": density}, {}, 2)
        tensors = RuleTensors(
            names=("w",), base=base, sources=sources, parameters=parameters, options=options, cache=cache, once=once
        )
        found = dict(merge_rule("della", tensors))["w"]
        assert torch.equal(found, merge_state_dicts("della", sources, base, {"density": density})["w"])

    candidate(0.5)
    before = len(calls)
    candidate(0.7)
    ours = len(calls) - before - 2  # two of the reference, which merges once
    assert ours == (0 if room else 2)
    candidate(0.7, once=True)
    assert len(calls) == before + ours + 2 + 4
