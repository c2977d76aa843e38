"""Model Breadcrumbs: kept elements worked by hand, their number, and what is left of TIES and task arithmetic."""

import itertools

import pytest
import torch

from evomerge.elementwise.breadcrumbs import Band, Bands, kept_ranks
from evomerge.errors import MergeError
from evomerge.merging import RuleTensors, merge_rule, merge_state_dicts
from evomerge.methods import validate
from evomerge.tensors import rule_tensors

TAU = [1.0, -2.0, 3.0, -4.0, 5.0, -6.0, 7.0, -8.0, 9.0, -10.0]


def merged(taus, method="breadcrumbs", base=0.0, parameters=None, **options):
    sources = [{"w": torch.as_tensor(tau) + base} for tau in taus]
    given = {"weight": 1.0, **(parameters or {})}
    return merge_state_dicts(method, sources, {"w": torch.full_like(sources[0]["w"], base)}, given, options)["w"]


def test_the_largest_and_the_smallest_are_dropped():
    # Of ten, 2 are the largest, 5 are kept, 3 the smallest.
    found = merged([TAU], parameters={"density": 0.5, "gamma": 0.2})
    assert found.tolist() == [0, 0, 0, -4, 5, -6, 7, -8, 0, 0]
    twice = merged([TAU], base=1.0, parameters={"density": 0.5, "gamma": 0.2, "weight": 0.5, "lambda": 3.0})
    assert twice.tolist() == [1, 1, 1, -5, 8.5, -8, 11.5, -11, 1, 1]


@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
def test_a_share_of_less_than_one_element_is_none_where_the_number_is_exact(method):
    given = {"density": 0.9, "gamma": 0.0}
    assert merged([[3.0]], method, base=1.0, parameters=given, semantics="mergekit").tolist() == [1.0]
    assert merged([[3.0]], method, base=1.0, parameters=given | {"density": 1.0}, semantics="mergekit").tolist() == [4]


def test_every_source_has_its_own_density_gamma_and_weight():
    other = [10.0] + [0.5] * 9
    found = merged([TAU, other], parameters={"density": [0.1, 0.1], "gamma": [0.0, 0.0], "weight": [1.0, 2.0]})
    assert found.tolist() == [20.0] + [0.0] * 8 + [-10.0]


def test_n20_a_gamma_of_zero_keeps_everything_above():
    for gamma in (0.0, 0.01, 0.09):  # a share of ten elements that is less than one
        found = merged([TAU], parameters={"density": 0.3, "gamma": gamma})
        assert found.tolist() == [0.0] * 7 + [-8.0, 9.0, -10.0]
    everything = merged([TAU], parameters={"density": 1.0, "gamma": 0.1})
    assert everything.tolist() == TAU


def test_gamma_takes_no_more_than_the_density_leaves():
    found = merged([TAU], parameters={"density": 0.8, "gamma": 0.5})
    assert found.tolist() == [*TAU[:8], 0.0, 0.0]


@pytest.mark.parametrize("elements", [1, 2, 7, 100, 1001])
def test_n20_the_share_that_was_asked_for_is_kept(elements):
    for density, gamma in itertools.product((0.0, 0.1, 0.33, 0.9, 1.0), (0.0, 0.01, 0.2, 1.0)):
        least, most = kept_ranks(density, gamma, elements)
        assert 1 <= least <= most <= elements
        assert most - least + 1 == max(1, int(density * elements))


def test_what_is_tied_with_the_last_kept_stays_and_nothing_moves_without_task_vectors():
    assert merged([[2.0, 2.0, -2.0, 2.0]], parameters={"density": 0.5, "gamma": 0.25}).tolist() == [2, 2, -2, 2]
    for method in ("breadcrumbs", "breadcrumbs_ties"):
        assert merged([[0.0] * 4] * 2, method, base=3.0).tolist() == [3.0] * 4
        assert merged([5.0], method, parameters={"density": 0.1, "gamma": 0.1}).item() == 5.0


@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
@pytest.mark.parametrize("piece", [3, 1 << 17])
def test_of_tied_elements_all_are_kept_or_the_first_as_many_as_the_share_says(method, piece, monkeypatch):
    monkeypatch.setattr(rule_tensors, "CPU_PIECE", piece)
    tau, middle = [1.0, -1.0, 2.0, -2.0, 2.0, 3.0, 3.0, -3.0, 3.0, 4.0], {"density": 0.5, "gamma": 0.2}
    # Of ten, 2 are the largest (4 and one 3), 5 are kept (three 3 and two 2), 3 the smallest.
    assert merged([tau], method, parameters=middle).tolist() == [0, 0, 2, -2, 2, 3, 3, -3, 3, 0]
    exact = {"semantics": "mergekit"}
    assert merged([tau], method, parameters=middle, **exact).tolist() == [0, 0, 2, -2, 0, 3, 3, -3, 0, 0]
    two = {"density": 0.2, "gamma": 0.2}  # both of the elements that are kept have one magnitude
    assert merged([tau], method, parameters=two, **exact).tolist() == [0, 0, 0, 0, 0, 3, 3, 0, 0, 0]
    nothing = {"density": 0.0, "gamma": 0.2}
    assert merged([tau], method, parameters=nothing, **exact).tolist() == [0] * 10


def random(n, shape=(7, 11)):
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(shape, generator=generator) for _ in range(n)]


def model_of(taus):
    return [{"w": tau} for tau in taus], {"w": torch.zeros_like(taus[0])}


def test_at_density_one_it_is_task_arithmetic_and_its_election_that_of_ties():
    sources, base = model_of(random(3))
    parameters = {"weight": [0.5, 1.0, 1.5]}
    plain = merge_state_dicts("task_arithmetic", sources, base, parameters)["w"]
    assert torch.equal(merge_state_dicts("breadcrumbs", sources, base, {**parameters, "density": 1.0})["w"], plain)
    for options in ({"elect": "count"}, {"agg": "dis-max"}, {"agg": "dis-sum"}, {"weighting": "norm"}, {}):
        ties = merge_state_dicts(
            "ties",
            sources,
            base,
            {**parameters, "density": 1.0},
            {**options, "zero_sign": "plus", "trim_scope": "tensor"},
        )
        elected = merge_state_dicts("breadcrumbs_ties", sources, base, {**parameters, "density": 1.0}, options)
        assert torch.equal(elected["w"], ties["w"])


def test_without_gamma_the_election_is_ties_at_the_same_density():
    sources, base = model_of(random(3))
    ties = merge_state_dicts(
        "ties", sources, base, {"density": 0.3}, {"zero_sign": "plus", "trim_scope": "tensor", "kept_rule": "topk"}
    )
    found = merge_state_dicts("breadcrumbs_ties", sources, base, {"density": 0.3, "gamma": 0.0})
    assert torch.equal(found["w"], ties["w"])


@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
def test_sources_may_come_in_any_order(method):
    taus, weights = random(3), [0.5, 1.0, 1.5]
    expected = merged(taus, method, parameters={"weight": weights, "density": 0.4, "gamma": 0.1})
    for order in itertools.permutations(range(3)):
        parameters = {"weight": [weights[i] for i in order], "density": 0.4, "gamma": 0.1}
        assert torch.allclose(merged([taus[i] for i in order], method, parameters=parameters), expected, atol=1e-6)


class LowerBounds:
    """A table that has the number from which on a rank begins, below the elements' own, and no exact one."""

    def kth_magnitude(self, source, scope, k):
        raise AssertionError("a lower bound would drop the largest element that is kept")

    def exact_magnitudes(self, source, name, ranks):
        return None


@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
def test_a_table_of_thresholds_changes_nothing(method):
    sources, base = model_of(random(2))
    parameters, options = validate(method, {"density": 0.4, "gamma": 0.1}, {}, 2)
    tensors = RuleTensors(
        names=("w",), base=base, sources=sources, parameters=parameters, options=options, thresholds=LowerBounds()
    )
    counted = merge_state_dicts(method, sources, base, {"density": 0.4, "gamma": 0.1})
    assert torch.equal(dict(merge_rule(method, tensors))["w"], counted["w"])


@pytest.mark.parametrize("zeros", [0.0, 0.4, 0.97])
def test_bounds_are_the_elements_of_their_ranks_whatever_is_tied_or_has_not_moved(zeros):
    generator = torch.Generator().manual_seed(2)
    tau = torch.randint(-300, 301, (40_000,), generator=generator) * 2.0**-9
    tau *= torch.rand(tau.shape, generator=generator) >= zeros
    sizes = tau.abs().sort().values
    for density, gamma in ((0.9, 0.01), (0.5, 0.2), (0.02, 0.0)):
        parameters, options = validate("breadcrumbs", {"density": density, "gamma": gamma}, {}, 1)
        base = {"w": torch.zeros_like(tau)}
        tensors = RuleTensors(names=("w",), base=base, sources=[{"w": tau}], parameters=parameters, options=options)
        least, most = kept_ranks(density, gamma, len(tau))
        assert Bands(tensors)(0, "w") == Band(float(sizes[least - 1]), float(sizes[most - 1]))


@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
def test_n5_an_infinite_element_is_refused_though_it_is_the_largest(method):
    with pytest.raises(MergeError, match="not finite in tensor 'w'"):
        merged([[*TAU[:9], float("inf")]], method, parameters={"density": 0.5, "gamma": 0.2})
