"""TIES: examples worked by hand, and a definition in plain Python that every option is held against."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.elementwise.ties import kept_rank
from evomerge.errors import MergeError
from evomerge.merging import RuleTensors, merge_rule, merge_state_dicts
from evomerge.methods import METHODS, validate

CHOICES = {option.name: option.choices for option in METHODS["ties"].options}


def zeros_like(model: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in model.items()}


def ties(*task_vectors: list[float], options=None, **parameters) -> list[float]:
    """TIES of task vectors of one tensor on a base of zeros; keeps everything unless told otherwise."""
    sources = [{"w": torch.tensor(vector, dtype=torch.float32)} for vector in task_vectors]
    parameters = {"density": 1.0, **parameters}
    return merge_state_dicts("ties", sources, zeros_like(sources[0]), parameters, options or {})["w"].tolist()


# --- trimming ---

TEN = [1.0, -2.0, 3.0, -4.0, 5.0, -6.0, 7.0, -8.0, 9.0, -10.0]


@pytest.mark.parametrize(
    ("kept_rule", "density", "smallest_kept"),
    [
        ("ge_kth", 0.2, 8),  # k = 10 - 2: the 8th smallest and above, int(dK) + 1 = 3 elements
        ("topk", 0.2, 9),  # exactly 2
        ("mask_rate", 0.2, 8),  # k = int(10 * 0.8)
        ("ge_kth", 0.25, 8),  # int(2.5) + 1 = 3
        ("topk", 0.25, 9),
        ("mask_rate", 0.25, 7),  # k = int(7.5): one more element than ge_kth
        ("ge_kth", 0.05, 10),
        ("topk", 0.05, 10),  # int(0.5) = 0, but at least one
        ("mask_rate", 0.05, 9),
        ("ge_kth", 0.0, 10),
        ("topk", 0.0, 10),
        ("mask_rate", 0.0, 10),
        ("ge_kth", 1.0, 1),
        ("topk", 1.0, 1),
        ("mask_rate", 1.0, 1),
        ("exact", 0.2, 9),
        ("exact", 0.25, 9),
        ("exact", 0.05, 10),
        ("exact", 0.0, 11),  # nothing
        ("exact", 1.0, 1),
    ],
)
def test_n20_the_kept_rules_keep_the_share_they_were_asked_for(kept_rule, density, smallest_kept):
    expected = [value if abs(value) >= smallest_kept else 0.0 for value in TEN]
    assert ties(TEN, density=density, options={"kept_rule": kept_rule}) == expected


@pytest.mark.parametrize("kept_rule", CHOICES["kept_rule"])
@settings(deadline=None, max_examples=200)
@given(density=st.floats(0, 1), elements=st.integers(1, 10**12))
def test_the_rank_is_never_larger_than_the_number_of_elements_unless_nothing_is_kept(kept_rule, density, elements):
    nothing = kept_rule == "exact" and density == 0
    assert 0 <= kept_rank(kept_rule, density, elements) <= elements + nothing


def test_elements_tied_at_the_threshold_are_all_kept_unless_their_number_is_exact():
    vector = [2.0, -2.0, 1.0, 2.0, -3.0]
    assert ties(vector, density=0.4, options={"kept_rule": "ge_kth"}) == [2.0, -2.0, 0.0, 2.0, -3.0]
    for rule in ("topk", "exact"):
        assert ties(vector, density=0.4, options={"kept_rule": rule}) == [2.0, 0.0, 0.0, 0.0, -3.0]
        assert ties(vector, density=0.6, options={"kept_rule": rule}) == [2.0, -2.0, 0.0, 0.0, -3.0]


def test_the_trim_scope_decides_what_small_tensors_keep():
    source = {
        "model.layers.0.a": torch.tensor([8.0, 7.0, 6.0, 5.0]),
        "model.layers.0.b": torch.tensor([0.4, 0.3, 0.2, 0.1]),
        "model.layers.1.a": torch.tensor([0.08, 0.07, 0.06, 0.05]),
        "norm": torch.tensor([0.004, 0.003]),
    }

    def kept(scope: str) -> dict[str, int]:
        options = {"trim_scope": scope, "kept_rule": "topk"}
        result = merge_state_dicts("ties", [source], zeros_like(source), {"density": 0.5}, options)
        return {name: int(tensor.count_nonzero()) for name, tensor in result.items()}

    names = list(source)
    assert kept("global") == dict(zip(names, [4, 3, 0, 0], strict=True))
    assert kept("tensor") == dict(zip(names, [2, 2, 2, 1], strict=True))
    assert kept("layer_group") == dict(zip(names, [4, 0, 2, 1], strict=True))


def test_a_tensor_may_keep_nothing_under_a_global_scope():
    source = {"large": torch.tensor([5.0, 4.0]), "small": torch.full((1000,), 1e-6)}
    base = {"large": torch.zeros(2), "small": torch.ones(1000)}
    for density in (0.0, 1e-3):
        result = merge_state_dicts("ties", [{**source, "small": source["small"] + 1}], base, {"density": density})
        assert torch.equal(result["small"], base["small"])
        assert float(result["large"][0]) == 5.0


def test_all_zero_task_vectors_give_the_base():
    base = {"w": torch.arange(10.0)}
    for density in (0.0, 0.3, 1.0):
        for rule in CHOICES["kept_rule"]:
            result = merge_state_dicts("ties", [base, base], base, {"density": density}, {"kept_rule": rule})
            assert torch.equal(result["w"], base["w"])


# --- election and merging ---


def test_the_sign_with_more_mass_is_elected_and_its_values_are_averaged():
    assert ties([3.0, 3.0, 0.0], [1.0, -1.0, 0.0], [-1.0, -1.0, -2.0]) == [2.0, 3.0, -2.0]


@pytest.mark.parametrize(
    ("elect", "agg", "expected"),
    [
        ("mass", "dis-mean", [3.0, 2.0]),
        ("mass", "dis-sum", [3.0, 4.0]),
        ("mass", "dis-max", [3.0, 3.0]),
        ("count", "dis-mean", [-1.0, 2.0]),
        ("count", "dis-sum", [-2.0, 4.0]),
        ("count", "dis-max", [-1.0, 3.0]),
    ],
)
def test_election_and_aggregation(elect, agg, expected):
    assert ties([3.0, 3.0], [-1.0, 1.0], [-1.0, -1.0], options={"elect": elect, "agg": agg}) == expected


@pytest.mark.parametrize(("weighting", "expected"), [("count", 2.5), ("norm", 5 / 1.5), ("sum", 5.0)])
def test_weights_enter_before_the_election_and_the_divisor_is_an_option(weighting, expected):
    # x = 4 * 1, 2 * 0.5 and -8 * 0.5; the last is outvoted
    result = ties([4.0], [2.0], [-8.0], weight=[1.0, 0.5, 0.5], options={"weighting": weighting})
    assert result == pytest.approx([expected])


def test_a_weight_can_turn_an_election():
    assert ties([3.0], [-2.0]) == [3.0]
    assert ties([3.0], [-2.0], weight=[1.0, 2.0]) == [-4.0]
    assert ties([3.0], [-2.0], weight=[-1.0, 1.0]) == [-2.5]


def test_lambda_scales_the_merged_task_vector():
    source, base = {"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])}
    assert merge_state_dicts("ties", [source], base, {"density": 1.0, "lambda": 2.5})["w"].tolist() == [6.0]


def test_zero_weights_give_the_base_unless_they_are_divided_by():
    assert ties([3.0], [1.0], weight=0.0) == [0.0]
    assert ties([3.0], [1.0], weight=0.0, options={"weighting": "norm", "agg": "dis-sum"}) == [0.0]
    with pytest.raises(MergeError, match="cannot be divided"):
        ties([3.0], [1.0], weight=0.0, options={"weighting": "norm"})


def test_weights_that_cancel_at_one_element_leave_its_sum_undivided():
    assert ties([2.0], [-2.0], weight=[1.0, -1.0], options={"weighting": "norm"}) == [4.0]


# --- the sign of a zero sum ---


@pytest.mark.parametrize(
    ("one", "two", "majority", "plus"),
    [
        ([1.0, 2.0, 3.0], [-1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]),
        ([1.0, -2.0, -3.0], [-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0], [1.0, -2.0, -3.0]),
        ([1.0, 2.0, -3.0], [-1.0, 2.0, -3.0], [-1.0, 2.0, -3.0], [1.0, 2.0, -3.0]),  # a balance is negative
        ([1.0], [-1.0], [-1.0], [1.0]),
    ],
)
def test_a_zero_sum_takes_the_majority_sign_or_plus(one, two, majority, plus):
    assert ties(one, two) == majority
    assert ties(one, two, options={"zero_sign": "plus"}) == plus


def test_a_zero_sum_of_signs_takes_the_majority_too():
    # values 3 and -1 balance as signs; the majority of the other elements is negative
    assert ties([3.0, -1.0], [-1.0, -1.0], options={"elect": "count"}) == [-1.0, -1.0]


@pytest.mark.parametrize(("scope", "expected"), [("global", -1.0), ("tensor", 1.0), ("layer_group", 1.0)])
def test_the_majority_is_taken_over_the_trim_scope(scope, expected):
    one = {"layers.0.a": torch.tensor([1.0, 2.0]), "layers.1.b": torch.tensor([-1.0, -1.0])}
    two = {"layers.0.a": torch.tensor([-1.0, 2.0]), "layers.1.b": torch.tensor([-1.0, -1.0])}
    result = merge_state_dicts("ties", [one, two], zeros_like(one), {"density": 1.0}, {"trim_scope": scope})
    assert result["layers.0.a"].tolist() == [expected, 2.0]


def test_the_majority_of_a_global_scope_counts_tensors_of_other_groups():
    one = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([-1.0, -1.0])}
    two = {"a": torch.tensor([-1.0, 2.0]), "b": torch.tensor([-1.0, -1.0])}
    parameters, options = validate("ties", {"density": 1.0}, {}, 2)
    base = zeros_like(one)
    for scope, expected in ((("a", "b"), -1.0), (("a",), 1.0), (None, 1.0)):
        tensors = RuleTensors(
            names=("a",),
            base=base,
            sources=(one, two),
            parameters=parameters,
            options=options,
            scope_names=scope,
        )
        merged = merge_rule("ties", tensors)
        assert [(name, tensor.tolist()) for name, tensor in merged] == [("a", [expected, 2.0])]


# --- the definition, one number at a time ---


def ties_by_definition(base, sources, densities, weights, factor, options):
    names = sorted(base)
    scopes = [[name] for name in names] if options["trim_scope"] == "tensor" else [names]
    result = {}
    for scope in scopes:
        flat_base = [x for name in scope for x in base[name]]
        weighted = []
        for source, density, weight in zip(sources, densities, weights, strict=True):
            tau = [x - b for x, b in zip([x for name in scope for x in source[name]], flat_base, strict=True)]
            weighted.append([weight * x for x in trimmed_by_definition(tau, density, options["kept_rule"])])
        columns = list(zip(*weighted, strict=True))
        vote = (lambda x: (x > 0) - (x < 0)) if options["elect"] == "count" else (lambda x: x)
        sums = [sum(map(vote, column)) for column in columns]
        balance = sum((s > 0) - (s < 0) for s in sums)
        zero = 1 if options["zero_sign"] == "plus" or balance > 0 else -1
        theta = []
        for b, column, s in zip(flat_base, columns, sums, strict=True):
            g = 1 if s > 0 else -1 if s < 0 else zero
            kept = [(x, w) for x, w in zip(column, weights, strict=True) if x * g > 0]
            theta.append(b + factor * aggregated_by_definition(kept, g, options))
        for name in scope:
            result[name], theta = theta[: len(base[name])], theta[len(base[name]) :]
    return result


def trimmed_by_definition(tau, density, kept_rule):
    d = len(tau)
    if density == 1:
        return tau
    if kept_rule == "exact" and density == 0:
        return [0] * d
    if kept_rule in ("topk", "exact"):
        best = sorted(range(d), key=lambda i: (-abs(tau[i]), i))[: max(1, int(d * density))]
        return [x if i in best else 0 for i, x in enumerate(tau)]
    k = d - int(d * density) if kept_rule == "ge_kth" else int(d * (1 - density))
    threshold = sorted(map(abs, tau))[k - 1] if k else 0
    return [x if abs(x) >= threshold else 0 for x in tau]


def aggregated_by_definition(kept, g, options):
    if not kept:
        return 0
    if options["agg"] == "dis-max":
        return g * max(abs(x) for x, _ in kept)
    total = sum(x for x, _ in kept)
    if options["agg"] == "dis-sum" or options["weighting"] == "sum":
        return total
    return total / (len(kept) if options["weighting"] == "count" else sum(w for _, w in kept))


every_option = st.sampled_from(
    [
        {**dict(zip(CHOICES, values, strict=True)), "trim_scope": scope}
        for values in itertools.product(*CHOICES.values())
        for scope in ("global", "tensor")
    ]
)


@settings(deadline=None, max_examples=150)
@given(every_option, st.data())
def test_every_combination_of_options_equals_the_definition(options, data):
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    n = data.draw(st.integers(1, 4))
    numbers = st.integers(-4, 4)  # few values: ties and exact cancellations abound

    def draw_model():
        return {f"t{i}": data.draw(st.lists(numbers, min_size=s, max_size=s)) for i, s in enumerate(sizes)}

    base, sources = draw_model(), [draw_model() for _ in range(n)]
    densities = data.draw(st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.75, 1.0]), min_size=n, max_size=n))
    weights = data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=n, max_size=n))
    factor = data.draw(st.sampled_from([0.5, 1.0]))
    expected = ties_by_definition(base, sources, densities, weights, factor, options)
    result = merge_state_dicts(
        "ties",
        [{name: torch.tensor(values, dtype=torch.float32) for name, values in source.items()} for source in sources],
        {name: torch.tensor(values, dtype=torch.float32) for name, values in base.items()},
        {"density": densities, "weight": weights, "lambda": factor},
        options,
    )
    for name, values in expected.items():
        assert result[name].tolist() == pytest.approx(values, rel=1e-5, abs=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-50, 50), min_size=1, max_size=8), every_option)
def test_one_source_at_density_and_weight_one_is_returned(values, options):
    base = {"w": torch.tensor([2.0 * value + 1 for value in values])}
    source = {"w": torch.tensor(values, dtype=torch.float32)}
    result = merge_state_dicts("ties", [source], base, {"density": 1.0, "weight": 1.0, "lambda": 1.0}, options)
    assert torch.equal(result["w"], source["w"])


@settings(deadline=None, max_examples=50)
@given(st.permutations([0, 1, 2]), every_option)
def test_the_order_of_sources_does_not_matter(order, options):
    generator = torch.Generator().manual_seed(0)
    sources = [{"w": torch.randint(-9, 10, (40,), generator=generator).float()} for _ in range(3)]
    base, weights, densities = zeros_like(sources[0]), [0.5, 1.0, 2.0], [0.2, 0.5, 0.8]
    plain = merge_state_dicts("ties", sources, base, {"density": densities, "weight": weights}, options)
    permuted = merge_state_dicts(
        "ties",
        [sources[i] for i in order],
        base,
        {"density": [densities[i] for i in order], "weight": [weights[i] for i in order]},
        options,
    )
    assert torch.allclose(plain["w"], permuted["w"])
