"""DARE: what its masks do to the mean, the variance and the share kept."""

from __future__ import annotations

import math

import pytest
import torch

from evomerge.merging import RuleTensors, merge_rule, merge_state_dicts
from evomerge.methods import validate
from evomerge.tensors import dropping, masks
from evomerge.tensors.masks import dropped, mask_key


def zeros_like(model: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in model.items()}


def dare(sources, base=None, seed=0, options=None, method="dare_linear", **parameters):
    base = zeros_like(sources[0]) if base is None else base
    return merge_state_dicts(method, sources, base, {"weight": 1.0, **parameters}, options or {}, seed=seed)


def test_survivors_are_those_of_the_keyed_mask_and_are_rescaled():
    source = {"w": torch.arange(1.0, 65.0)}
    gone = dropped(mask_key(3, 0, "w"), 0, 64, 0.75)
    expected = [0.0 if bool(drop) else 4 * value for drop, value in zip(gone, source["w"].tolist(), strict=True)]
    assert 0 < int(gone.count_nonzero()) < 64
    assert dare([source], seed=3, drop_rate=0.75)["w"].tolist() == expected
    unscaled = [value / 4 for value in expected]
    assert dare([source], seed=3, drop_rate=0.75, options={"rescale": "none"})["w"].tolist() == unscaled


def test_dare_linear_is_task_arithmetic_of_the_masked_vectors():
    base = {"w": torch.full((64,), 10.0)}
    sources = [{"w": torch.arange(64.0)}, {"w": torch.arange(64.0) * 3}]
    t = [dare([source], base, drop_rate=0.0)["w"] - 10 for source in sources]
    assert torch.equal(dare(sources, base, drop_rate=0.0, weight=[1.0, 2.0])["w"], 10 + t[0] + 2 * t[1])
    normalized = dare(sources, base, drop_rate=0.0, weight=[1.0, 3.0], options={"normalize": True})["w"]
    assert torch.allclose(normalized, 10 + t[0] / 4 + 3 * t[1] / 4)


def test_n21_the_mean_over_masks_is_the_task_vector_and_the_variance_is_as_stated():
    tau = torch.tensor([1.0, -2.0, 0.5, 100.0])
    for drop_rate in (0.2, 0.5, 0.9):
        # a long tensor of repeated values is as good as many masks
        n = 50_000
        result = dare([{"w": tau.repeat(n)}], drop_rate=drop_rate)["w"].view(n, 4).double()
        variance = tau.double() ** 2 * drop_rate / (1 - drop_rate)
        assert bool(((result.mean(0) - tau).abs() < 5 * (variance / n).sqrt()).all())
        assert torch.allclose(result.var(0), variance, rtol=0.05)


def test_n21_the_mean_over_seeds_is_the_task_vector():
    tau = torch.tensor([3.0])
    values = [float(dare([{"w": tau}], seed=seed, drop_rate=0.5)["w"]) for seed in range(800)]
    assert set(values) == {0.0, 6.0}
    assert abs(sum(values) / 800 - 3) < 5 * 3 / math.sqrt(800)


def test_masks_of_sources_and_tensors_are_independent():
    n = 100_000
    model = {"a": torch.ones(n), "b": torch.ones(n)}
    one = dare([model], drop_rate=0.5, options={"rescale": "none"})
    both = dare([model, model], drop_rate=0.5, options={"rescale": "none"})
    second = {name: both[name] - one[name] for name in model}
    pairs = [(one["a"], one["b"]), (one["a"], second["a"]), (one["a"], second["b"]), (second["a"], second["b"])]
    for x, y in pairs:
        assert abs(float((x * y).mean()) - 0.25) < 5 * math.sqrt(3 / 16 / n)


def test_l1_match_restores_the_norm_of_each_tensor():
    generator = torch.Generator().manual_seed(0)
    source = {"a": torch.randn(64, generator=generator), "b": torch.randn(5000, generator=generator)}
    result = dare([source], drop_rate=0.5, options={"rescale": "l1_match"})
    for name in source:
        assert float(result[name].abs().sum()) == pytest.approx(float(source[name].abs().sum()), rel=1e-5)
        kept = result[name] != 0
        factors = result[name][kept] / source[name][kept]
        assert float(factors.max()) == pytest.approx(float(factors.min()), rel=1e-5)
        assert float(factors.mean()) != pytest.approx(2.0, rel=1e-5)


def test_l1_match_of_a_tiny_lone_survivor_is_finite():
    values = torch.full((64,), 1.0)
    survivors = ~dropped(mask_key(0, 0, "w"), 0, 64, 0.95)
    values[survivors] = 1e-42
    result = dare([{"w": values}], drop_rate=0.95, options={"rescale": "l1_match"})["w"]
    assert bool(result.isfinite().all())
    assert float(result.sum()) == pytest.approx(float(values.sum()), rel=1e-2)


@pytest.mark.parametrize("rescale", ["1/(1-p)", "none", "l1_match"])
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_at_drop_rate_one_nothing_is_left_and_at_zero_nothing_changes(method, rescale):
    source, base = {"w": torch.arange(1.0, 65.0)}, {"w": torch.ones(64)}
    options = {"rescale": rescale}
    parameters = {} if method == "dare_linear" else {"density": 1.0}
    assert torch.equal(
        dare([source], base, method=method, options=options, drop_rate=1.0, **parameters)["w"], base["w"]
    )
    assert torch.equal(
        dare([source], base, method=method, options=options, drop_rate=0.0, **parameters)["w"], source["w"]
    )


def test_targets_linear_leaves_all_but_matrices_as_they_are():
    source = {"bias": torch.ones(64), "weight": torch.ones(8, 8), "conv": torch.ones(4, 4, 4)}
    result = dare([source], drop_rate=0.5, options={"targets": "linear"})
    assert torch.equal(result["bias"], source["bias"])
    assert torch.equal(result["conv"], source["conv"])
    assert set(result["weight"].unique().tolist()) == {0.0, 2.0}


def test_drop_rates_are_per_source():
    sources = [{"w": torch.ones(64)}, {"w": torch.full((64,), 100.0)}]
    assert torch.equal(dare(sources, drop_rate=[0.0, 1.0])["w"], torch.ones(64))


def test_dare_ties_without_dropping_is_ties():
    generator = torch.Generator().manual_seed(0)
    sources = [{"w": torch.randn(500, generator=generator)} for _ in range(3)]
    parameters = {"density": [0.2, 0.5, 0.9], "weight": [1.0, 0.5, 2.0]}
    plain = merge_state_dicts("ties", sources, zeros_like(sources[0]), parameters)
    assert torch.equal(dare(sources, method="dare_ties", drop_rate=0.0, **parameters)["w"], plain["w"])


def test_retrim_is_ties_on_the_masked_vectors():
    generator = torch.Generator().manual_seed(0)
    sources = [{"w": torch.randn(500, generator=generator), "v": torch.randn(9, generator=generator)} for _ in range(3)]
    masked = []
    for position, source in enumerate(sources):
        padded = [zeros_like(source)] * position + [source]  # masks are keyed by position
        masked.append(dare(padded, drop_rate=0.4))
    for options in (
        {},
        {"trim_scope": "tensor"},
        {"kept_rule": "topk"},
        {"kept_rule": "exact"},
        {"elect": "count", "zero_sign": "plus"},
    ):
        expected = merge_state_dicts("ties", masked, zeros_like(sources[0]), {"density": 0.3}, options)
        result = dare(sources, method="dare_ties", drop_rate=0.4, density=0.3, options=options)
        assert all(torch.equal(result[name], expected[name]) for name in expected)


def test_no_trim_ignores_the_density():
    generator = torch.Generator().manual_seed(0)
    sources = [{"w": torch.randn(500, generator=generator)} for _ in range(3)]
    low, high = (
        dare(sources, method="dare_ties", drop_rate=0.4, density=density, options={"dare_ties": "no_trim"})["w"]
        for density in (0.01, 1.0)
    )
    trimmed = dare(sources, method="dare_ties", drop_rate=0.4, density=0.01)["w"]
    assert torch.equal(low, high)
    assert int(trimmed.count_nonzero()) < int(low.count_nonzero())


def test_retrim_of_vectors_sparser_than_the_density_changes_nothing():
    source = {"w": torch.randn(1000, generator=torch.Generator().manual_seed(0))}
    retrimmed = dare([source], method="dare_ties", drop_rate=0.9, density=0.5)["w"]
    untrimmed = dare([source], method="dare_ties", drop_rate=0.9, options={"dare_ties": "no_trim"})["w"]
    assert torch.equal(retrimmed, untrimmed)


# --- thresholds of masked vectors from a table of unmasked ones ---


class SortedTable:
    """Exact order statistics of the unmasked task vectors; counts the questions."""

    def __init__(self, sources, base):
        self.questions = 0
        self._sources, self._base = sources, base

    def kth_magnitude(self, source, scope, k):
        self.questions += 1
        flat = torch.cat([(self._sources[source][name] - self._base[name]).reshape(-1) for name in scope])
        return float(flat.abs().sort().values[k - 1])


def grouped(sources, base, table, parameters, options=None):
    resolved, chosen = validate("dare_ties", parameters, options or {}, len(sources))
    tensors = RuleTensors(
        names=tuple(sorted(base)),
        base=base,
        sources=sources,
        parameters=resolved,
        options=chosen,
        thresholds=table,
    )
    return dict(merge_rule("dare_ties", tensors))


@pytest.mark.parametrize("rescale", ["1/(1-p)", "none"])
@pytest.mark.parametrize(("drop_rate", "density"), [(0.1, 0.2), (0.5, 0.3), (0.5, 0.05), (0.9, 0.05), (0.9, 0.001)])
def test_looked_up_thresholds_keep_the_same_share_up_to_sampling_error(drop_rate, density, rescale):
    d = 200_000
    generator = torch.Generator().manual_seed(0)
    source = {"a": torch.randn(300, 400, generator=generator), "b": torch.randn(80_000, generator=generator) * 0.1}
    base = zeros_like(source)
    parameters, options = {"drop_rate": drop_rate, "density": density}, {"rescale": rescale}
    table = SortedTable([source], base)
    looked_up = grouped([source], base, table, parameters, options)
    counted = grouped([source], base, None, parameters, options)
    assert table.questions == 1
    kept = int(density * d)
    found = sum(int(tensor.count_nonzero()) for tensor in looked_up.values())
    assert sum(int(tensor.count_nonzero()) for tensor in counted.values()) == kept + 1
    assert abs(found - kept) < 5 * math.sqrt(drop_rate * kept) + 2
    for name in base:
        both = (looked_up[name] != 0) & (counted[name] != 0)
        assert torch.equal(looked_up[name][both], counted[name][both])


def test_looked_up_thresholds_keep_all_survivors_where_there_are_too_few():
    source = {"w": torch.randn(100_000, generator=torch.Generator().manual_seed(0))}
    base = zeros_like(source)
    for drop_rate, density in ((0.9, 0.2), (1.0, 0.2), (0.5, 0.6)):
        parameters = {"drop_rate": drop_rate, "density": density}
        looked_up = grouped([source], base, SortedTable([source], base), parameters)
        assert torch.equal(looked_up["w"], grouped([source], base, None, parameters)["w"])


@pytest.mark.parametrize(
    ("size", "options"),
    [(500, {}), (70_000, {"rescale": "l1_match"}), (70_000, {"targets": "linear"})],
)
def test_where_a_lookup_would_be_wrong_thresholds_are_counted(size, options):
    generator = torch.Generator().manual_seed(0)
    source = {"a": torch.randn(size, generator=generator), "b": torch.randn(10, 10, generator=generator)}
    base = zeros_like(source)
    table = SortedTable([source], base)
    parameters = {"drop_rate": 0.5, "density": 0.1}
    looked_up = grouped([source], base, table, parameters, options)
    counted = grouped([source], base, None, parameters, options)
    assert table.questions == 0
    assert all(torch.equal(looked_up[name], counted[name]) for name in base)


def test_unmasked_sources_are_looked_up_exactly():
    source = {"w": torch.randn(500, generator=torch.Generator().manual_seed(0))}
    base = zeros_like(source)
    table = SortedTable([source], base)
    parameters = {"drop_rate": 0.0, "density": 0.1}
    assert torch.equal(grouped([source], base, table, parameters)["w"], grouped([source], base, None, parameters)["w"])
    assert table.questions == 1


@pytest.mark.parametrize("elements", [dropping.KEPT, dropping.KEPT + 1])
def test_random_bits_of_small_tensors_are_drawn_once_for_all_drop_rates(elements, monkeypatch):
    drawn = []
    inner = masks.uniform_bits
    for module in (masks, dropping):
        monkeypatch.setattr(module, "uniform_bits", lambda *given: drawn.append(given) or inner(*given))
    for rate in (0.3, 0.6, 0.3):
        found = dropping.Drop(elements, rate)(7, torch.ones(elements))
        assert torch.equal(found, masks.dropped(elements, 7, 7 + elements, rate).logical_not().float())
    assert len(drawn) - 3 == (1 if elements <= dropping.KEPT else 3)
