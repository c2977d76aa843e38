"""RAM and RAM+: worked by hand, with what is shared and what one source alone has changed."""

import itertools

import pytest
import torch

from evomerge.merging import merge_state_dicts

ONE = [4.0, 2.0, 0.0, 0.0, 3.0]
TWO = [2.0, 0.0, 6.0, 0.0, -1.0]
# Shared: the first and the last. Each has one element of its own, so rho = 2 for both.


def merged(taus, method="ram_plus", base=0.0, parameters=None, **options):
    sources = [{"w": torch.as_tensor(tau) + base} for tau in taus]
    base = {"w": torch.full_like(sources[0]["w"], base)}
    return merge_state_dicts(method, sources, base, parameters or {}, options)["w"]


def test_shared_elements_are_averaged_over_those_that_changed_them_and_others_kept_in_full():
    assert merged([ONE, TWO], "ram").tolist() == [3.0, 2.0, 6.0, 0.0, 1.0]
    assert merged([ONE, TWO, [0.0] * 5], "ram", base=1.0).tolist() == [4.0, 3.0, 7.0, 1.0, 2.0]


def test_unique_elements_are_scaled_by_the_overlap_up_to_alpha():
    found = merged([ONE, TWO], parameters={"r": 0.5, "alpha": 0.2})
    assert found.tolist() == pytest.approx([3.0, 2.2, 6.6, 0.0, 1.0])
    found = merged([ONE, TWO], parameters={"r": 0.5, "alpha": 10.0})
    assert found.tolist() == pytest.approx([3.0, 4.0, 12.0, 0.0, 1.0])  # 1 + 0.5 * 2
    assert torch.equal(merged([ONE, TWO], parameters={"r": 0.0}), merged([ONE, TWO], "ram"))


def test_overlap_is_of_the_whole_model_or_of_each_tensor():
    one = {"a": torch.tensor([1.0, 1.0]), "b": torch.tensor([1.0, 0.0])}
    two = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0, 1.0])}
    base = {name: torch.zeros(2) for name in one}
    given = {"parameters": {"r": 1.0, "alpha": 9.0}}
    # Source one: 1 shared, 2 of its own; source two: 1 and 1.
    whole = merge_state_dicts("ram_plus", [one, two], base, **given)
    assert (whole["a"].tolist(), whole["b"].tolist()) == ([1.0, 1.5], [1.5, 2.0])
    # By tensor, source one has 1 : 1 in a and 0 : 1 in b.
    each = merge_state_dicts("ram_plus", [one, two], base, **given, options={"semantics": "mergekit"})
    assert (each["a"].tolist(), each["b"].tolist()) == ([1.0, 2.0], [1.0, 1.0])


def test_what_is_at_most_epsilon_has_not_changed():
    found = merged([[0.5, 0.5], [0.25, 1.5]], "ram", parameters={"epsilon": 0.5})
    assert found.tolist() == [0.0, 1.5]
    assert merged([[0.0, 1e-30], [0.0, 0.0]], "ram", parameters={"epsilon": 0.0}).tolist() == [
        0.0,
        pytest.approx(1e-30),
    ]


@pytest.mark.parametrize("epsilon", [0.0, 1e-5])
def test_without_an_element_of_its_own_a_source_has_nothing_to_scale(epsilon):
    parameters = {"epsilon": epsilon, "r": 1.0}
    assert merged([[1.0, 3.0], [3.0, 1.0]], parameters=parameters).tolist() == [2.0, 2.0]
    assert merged([[0.0, 0.0]] * 2, base=5.0, parameters=parameters).tolist() == [5.0, 5.0]
    assert merged([2.0, 4.0], parameters=parameters).item() == 3.0


@pytest.mark.parametrize("method", ["ram", "ram_plus"])
def test_one_source_is_itself_equal_ones_too_and_the_order_does_not_matter(method):
    taus = [torch.randn(3, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    taus = [tau * (tau.abs() > 0.8) for tau in taus]
    assert torch.equal(merged(taus[:1], method), taus[0])
    assert torch.allclose(merged([taus[0]] * 3, method), taus[0])
    expected = merged(taus, method)
    for order in itertools.permutations(taus):
        assert torch.allclose(merged(order, method), expected, atol=1e-6)


def test_at_epsilon_zero_and_dense_vectors_it_is_the_mean():
    taus = [torch.randn(20, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    mean = merged(taus, "task_arithmetic", parameters={"weight": 1 / 3})
    for method in ("ram", "ram_plus"):
        assert torch.allclose(merged(taus, method, parameters={"epsilon": 0.0}), mean, atol=1e-6)
