"""Fisher-weighted averaging: hand-worked values, the definition written out element by element, and what is refused."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from evomerge.elementwise.fisher import fisher_norm
from evomerge.errors import InvalidInput, MergeError
from evomerge.merging import merge_state_dicts
from evomerge.methods import METHODS

SHAPES = {"fc.weight": (4, 3), "fc.bias": (4,), "scale": ()}
WEIGHTS = (0.2, 1.0, 0.5)


def drawn(seed, transform=lambda tensor: tensor, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {name: transform(torch.randn(shape, generator=generator)).to(dtype) for name, shape in SHAPES.items()}


def models(dtype=torch.float32):
    return [drawn(seed, dtype=dtype) for seed in range(3)]


def fishers():
    """Squares over many orders of magnitude, with some zeros."""
    return [drawn(10 + seed, lambda t: torch.where(t > 1, 0.0, (3 * t).exp() * 1e-6)) for seed in range(3)]


def by_definition(sources, statistics, weights, *, floor, power, normalize, floor_on):
    """Element by element on Python floats."""
    norms = []
    for fisher in statistics:
        squares = {name: sum(f**power * f**power for f in tensor.flatten().tolist()) for name, tensor in fisher.items()}
        whole = math.sqrt(sum(squares.values()))
        norms.append({"model": lambda name, w=whole: w, "none": lambda name: 1.0}.get(
            normalize, lambda name, s=squares: math.sqrt(s[name]) or 1.0
        ))  # fmt: skip
    result = {}
    for name, like in sources[0].items():
        values = []
        for index in range(like.numel()):
            above = below = 0.0
            for i, (source, fisher) in enumerate(zip(sources, statistics, strict=True)):
                entry = fisher[name].flatten()[index].item() ** power
                if i == 0 or floor_on == "all":
                    entry = max(entry, floor)
                share = weights[i] / norms[i](name) * entry
                above += share * source[name].flatten()[index].item()
                below += share
            values.append(above / below if below else like.flatten()[index].item())
        result[name] = torch.tensor(values).reshape(like.shape)
    return result


@pytest.mark.parametrize(
    ("normalize", "floor_on", "floor", "power"),
    list(itertools.product(["model", "tensor", "none"], ["target", "all"], [0.0, 1e-6, 0.1], [1.0, 0.3, 0.0])),
)
def test_the_merge_is_its_definition_under_every_option(normalize, floor_on, floor, power):
    options = {"normalize_fisher": normalize, "floor_on": floor_on}
    parameters = {"weight": WEIGHTS, "floor": floor, "power": power}
    found = merge_state_dicts("fisher", models(), None, parameters, options, fishers())
    expected = by_definition(
        models(), fishers(), WEIGHTS, floor=floor, power=power, normalize=normalize, floor_on=floor_on
    )
    torch.testing.assert_close(found, expected)


def test_a_small_merge_by_hand():
    """Norms 5 and 10; shares of the first element 3/5 and 6/10, of the second 4/5 and 8/10, of the last floor and 0."""
    sources = [{"w": torch.tensor([1.0, 2.0, 3.0])}, {"w": torch.tensor([2.0, 4.0, 30.0])}]
    statistics = [{"w": torch.tensor([3.0, 4.0, 0.0])}, {"w": torch.tensor([6.0, 8.0, 0.0])}]
    found = merge_state_dicts("fisher", sources, statistics=statistics)
    torch.testing.assert_close(found["w"], torch.tensor([1.5, 3.0, 3.0]))
    plain = merge_state_dicts("fisher", sources, options={"normalize_fisher": "none"}, statistics=statistics)
    torch.testing.assert_close(plain["w"], torch.tensor([5 / 3, 10 / 3, 3.0]))


@pytest.mark.parametrize("options", [{}, {"floor_on": "all"}, {"normalize_fisher": "tensor"}])
def test_equal_fishers_give_the_weighted_average(options):
    same = [drawn(7, torch.Tensor.abs)] * 3
    found = merge_state_dicts("fisher", models(), parameters={"weight": WEIGHTS}, options=options, statistics=same)
    torch.testing.assert_close(found, merge_state_dicts("linear", models(), parameters={"weight": WEIGHTS}))


def test_power_0_gives_the_weighted_average_where_fishers_are_0_too():
    found = merge_state_dicts("fisher", models(), parameters={"weight": WEIGHTS, "power": 0.0}, statistics=fishers())
    torch.testing.assert_close(found, merge_state_dicts("linear", models(), parameters={"weight": WEIGHTS}))


def test_without_any_fisher_the_merge_is_the_weighted_mean():
    found = merge_state_dicts("fisher", models(), parameters={"weight": WEIGHTS}, statistics=[{}, {}, {}])
    torch.testing.assert_close(found, merge_state_dicts("linear", models(), parameters={"weight": WEIGHTS}))


def test_a_tensor_without_a_fisher_is_the_weighted_mean_and_does_not_change_the_others():
    whole = merge_state_dicts("fisher", models(), parameters={"weight": WEIGHTS}, statistics=fishers())
    extended = [{**model, "head": torch.full((2,), float(index))} for index, model in enumerate(models())]
    found = merge_state_dicts("fisher", extended, parameters={"weight": WEIGHTS}, statistics=fishers())
    torch.testing.assert_close(found.pop("head"), torch.full((2,), (1.0 + 2 * 0.5) / 1.7))
    torch.testing.assert_close(found, whole)


@pytest.mark.parametrize("parameters", [{"floor": 0.0}, {"weight": [0.0, 1.0, 1.0]}])
def test_the_target_remains_where_no_source_has_a_share(parameters):
    nothing = [{**fisher, "fc.bias": torch.zeros(4)} for fisher in fishers()]
    found = merge_state_dicts("fisher", models(), parameters=parameters, statistics=nothing)
    assert torch.equal(found["fc.bias"], models()[0]["fc.bias"])


def test_only_the_ratios_of_the_weights_matter():
    small = [weight * 1e-12 for weight in WEIGHTS]
    results = [
        merge_state_dicts("fisher", models(), parameters={"weight": each}, statistics=fishers())
        for each in (WEIGHTS, small)
    ]
    torch.testing.assert_close(*results)


def test_the_scale_of_a_fisher_does_not_matter_under_a_norm_and_no_floor():
    scaled = [{name: 1e-9 * tensor for name, tensor in fisher.items()} for fisher in fishers()]
    one, two = (
        merge_state_dicts("fisher", models(), parameters={"floor": 0.0}, statistics=each)
        for each in (fishers(), scaled)
    )
    torch.testing.assert_close(one, two)


def test_fishers_far_below_the_range_of_squares_in_float32_keep_their_ratios():
    sources = [{"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([3.0, 5.0])}]
    tiny = [{"w": torch.tensor([1e-30, 2e-30])}, {"w": torch.tensor([3e-30, 1e-30])}]
    huge = [{"w": tensor["w"] * 1e30} for tensor in tiny]
    one, two = (
        merge_state_dicts("fisher", sources, parameters={"floor": 0.0}, statistics=each) for each in (tiny, huge)
    )
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_result_has_the_dtype_of_the_sources(dtype):
    found = merge_state_dicts("fisher", models(dtype), statistics=fishers())
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    torch.testing.assert_close(
        found["fc.weight"],
        merge_state_dicts("fisher", models(), statistics=fishers())["fc.weight"].to(dtype),
        rtol=1e-2,
        atol=1e-2,
    )


def test_a_tied_tensor_counts_once_and_may_have_its_fisher_under_either_name():
    def tied(model):
        return {"embed": model["fc.weight"], "body": model["fc.bias"], "a_head": model["fc.weight"]}

    def named(fisher, name):
        return {name: fisher["fc.weight"], "body": fisher["fc.bias"]}

    by_name = [
        merge_state_dicts("fisher", [tied(m) for m in models()], statistics=[named(f, name) for f in fishers()])
        for name in ("embed", "a_head")
    ]
    torch.testing.assert_close(*by_name)
    alone = [{"embed": m["fc.weight"], "body": m["fc.bias"]} for m in models()]
    untied = merge_state_dicts("fisher", alone, statistics=[named(f, "embed") for f in fishers()])
    torch.testing.assert_close({name: by_name[0][name] for name in untied}, untied)


@pytest.mark.parametrize(
    "change", [lambda t: t.clone().requires_grad_(), lambda t: t.to(torch.float8_e4m3fn)], ids=["graph", "float8"]
)
def test_fishers_may_need_gradients_or_have_8_bits(change):
    ones = [{name: change(torch.full(shape, 1.0 + i)) for name, shape in SHAPES.items()} for i in range(3)]
    found = merge_state_dicts("fisher", models(), options={"normalize_fisher": "none"}, statistics=ones)
    torch.testing.assert_close(found, merge_state_dicts("linear", models(), parameters={"weight": [1.0, 2.0, 3.0]}))
    assert not any(tensor.requires_grad for tensor in found.values())


def test_the_norm_of_nothing_can_be_divided_by():
    assert fisher_norm([torch.zeros(3)]) == 1.0
    assert fisher_norm([torch.tensor([3.0]), torch.tensor([[4.0]])]) == 5.0


def without(name):
    return [fishers()[0], {key: value for key, value in fishers()[1].items() if key != name}, fishers()[2]]


def spoiled(tensor):
    return [fishers()[0], {**fishers()[1], "fc.bias": tensor}, fishers()[2]]


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        (None, "statistics is a list of 3 mappings"),
        (fishers()[:2], "2 mappings"),
        (fishers()[0], "statistics is a list"),
        (without("fc.bias"), "source 1 has no Fisher of tensor 'fc.bias'"),
        (spoiled(torch.ones(3)), r"source 1 for tensor 'fc.bias' has the shape \[3\]"),
        (spoiled(torch.tensor([1.0, 1.0, -1.0, 1.0])), "negative or not finite"),
        (spoiled(torch.tensor([1.0, 1.0, math.nan, 1.0])), "negative or not finite"),
        (spoiled(torch.ones(4, dtype=torch.int64)), "torch.int64; give a floating-point tensor"),
        (spoiled([1.0] * 4), "list; give a floating-point tensor"),
        ([{"fc": torch.ones(4, 3)}] * 3, "name no tensor of the model"),
    ],
)
@pytest.mark.parametrize("normalize", ["model", "none"])
def test_statistics_that_do_not_fit_are_refused(statistics, message, normalize):
    with pytest.raises(InvalidInput, match=message):
        merge_state_dicts("fisher", models(), options={"normalize_fisher": normalize}, statistics=statistics)


def test_weights_that_are_all_zero_are_refused():
    with pytest.raises(MergeError, match="all 0"):
        merge_state_dicts("fisher", models(), parameters={"weight": 0.0}, statistics=fishers())


def test_the_defaults_are_those_of_the_authors():
    info = METHODS["fisher"]
    assert {parameter.name: parameter.default for parameter in info.parameters} == {
        "weight": 1.0,
        "floor": 1e-6,
        "power": 1.0,
    }
    assert {option.name: option.choices for option in info.options} == {
        "normalize_fisher": ("model", "tensor", "none"),
        "floor_on": ("target", "all"),
    }
