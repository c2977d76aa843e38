"""RegMean: it minimises its least squares, is the formula written with an inverse, and refuses what it cannot solve."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from evomerge.errors import InvalidInput, MergeError
from evomerge.merging import merge_state_dicts
from evomerge.methods import METHODS
from evomerge.statistics import input_grams

IN, OUT, N = 5, 4, 3
WEIGHTS = (0.2, 1.0, 0.5)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(rows=20):
    """Of each source: correlated columns of different sizes."""
    return [drawn(rows, IN, seed=i) @ drawn(IN, IN, seed=10 + i) for i in range(N)]


def grams(rows=20, dtype=torch.float32):
    return [{"fc.weight": (x.T @ x / rows).to(dtype)} for x in inputs(rows)]


def models(dtype=torch.float32):
    return [
        {"fc.weight": drawn(OUT, IN, seed=20 + i).to(dtype), "fc.bias": drawn(OUT, seed=30 + i).to(dtype)}
        for i in range(N)
    ]


def by_inverse(weights, given, shares, scaling, ridge=0.0):
    """(sum_i c_i Gt_i)^-1 sum_i c_i Gt_i W_i', with an explicit inverse."""
    scaled = [
        (scaling * gram + (1 - scaling) * torch.diag(gram.diagonal()) + ridge * torch.eye(len(gram))).double()
        for gram in given
    ]
    left = sum(share * gram for share, gram in zip(shares, scaled, strict=True))
    right = sum(share * gram @ w.double().T for share, gram, w in zip(shares, scaled, weights, strict=True))
    return (torch.linalg.inv(left) @ right).T


@pytest.mark.parametrize("scaling", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("weight", [1.0, WEIGHTS])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_a_weight_is_the_formula_and_everything_else_the_weighted_mean(scaling, weight, ridge):
    parameters = {"scaling": scaling, "weight": weight, "ridge": ridge}
    found = merge_state_dicts("regmean", models(), parameters=parameters, statistics=grams())
    shares = (1.0,) * N if weight == 1.0 else weight
    given = [each["fc.weight"] for each in grams()]
    expected = by_inverse([m["fc.weight"] for m in models()], given, shares, scaling, ridge)
    torch.testing.assert_close(found["fc.weight"], expected.float())
    linear = merge_state_dicts("linear", models(), parameters={"weight": weight})
    torch.testing.assert_close(found["fc.bias"], linear["fc.bias"])


def test_with_all_of_the_gram_the_result_minimises_the_squared_distance_of_the_outputs():
    """Its value is below that of 50 disturbed weights, of the average and of every source, and its slope is 0."""
    sources, x = models(torch.float64), inputs()
    found = merge_state_dicts(
        "regmean", sources, parameters={"scaling": 1.0, "weight": WEIGHTS}, statistics=grams(dtype=torch.float64)
    )["fc.weight"]

    def distance(weight):
        return sum(
            share * (each @ (weight - source["fc.weight"]).T).square().sum() / len(each)
            for share, each, source in zip(WEIGHTS, x, sources, strict=True)
        )

    variable = found.clone().requires_grad_()
    distance(variable).backward()
    torch.testing.assert_close(variable.grad, torch.zeros(OUT, IN, dtype=torch.float64), atol=1e-10, rtol=0)
    others = [found + 0.1 * drawn(OUT, IN, seed=100 + seed) for seed in range(50)]
    others += [source["fc.weight"] for source in sources]
    others.append(merge_state_dicts("linear", sources, parameters={"weight": WEIGHTS})["fc.weight"])
    assert all(distance(found) < distance(other) for other in others)


def test_one_input_by_hand():
    """Grams 1 and 3, weights 2 and 6: (1 * 2 + 3 * 6) / 4."""
    sources = [{"w.weight": torch.tensor([[2.0]])}, {"w.weight": torch.tensor([[6.0]])}]
    statistics = [{"w.weight": torch.tensor([[1.0]])}, {"w.weight": torch.tensor([[3.0]])}]
    assert merge_state_dicts("regmean", sources, statistics=statistics)["w.weight"].item() == 5.0


def test_equal_grams_give_the_average():
    same = [grams()[0]] * N
    found = merge_state_dicts("regmean", models(), parameters={"weight": WEIGHTS}, statistics=same)
    torch.testing.assert_close(found, merge_state_dicts("linear", models(), parameters={"weight": WEIGHTS}))


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_copies_of_one_model_give_that_model(ridge):
    found = merge_state_dicts("regmean", [models()[0]] * N, parameters={"ridge": ridge}, statistics=grams())
    torch.testing.assert_close(found, models()[0])


@pytest.mark.parametrize("factor", [1e-12, 1e9])
def test_only_the_ratios_of_the_weights_matter(factor):
    one, two = (
        merge_state_dicts("regmean", models(), parameters={"weight": each, "ridge": 0.1}, statistics=grams())
        for each in (WEIGHTS, [factor * weight for weight in WEIGHTS])
    )
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize(
    "change", [lambda t: t.clone().requires_grad_(), lambda t: t.to(torch.float8_e4m3fn)], ids=["graph", "float8"]
)
def test_grams_may_need_gradients_or_have_8_bits(change):
    statistics = [{"fc.weight": change((1.0 + i) * torch.eye(IN))} for i in range(N)]
    found = merge_state_dicts("regmean", models(), statistics=statistics)["fc.weight"]
    linear = merge_state_dicts("linear", models(), parameters={"weight": [1.0, 2.0, 3.0]})
    torch.testing.assert_close(found, linear["fc.weight"])
    assert not found.requires_grad


def test_a_source_without_weight_does_not_count():
    found = merge_state_dicts("regmean", models(), parameters={"weight": [0.0, 1.0, 0.0]}, statistics=grams())
    torch.testing.assert_close(found, models()[1])


def test_a_weight_that_not_all_sources_have_a_gram_of_is_the_mean():
    statistics = [grams()[0], {}, grams()[2]]
    found = merge_state_dicts("regmean", models(), statistics=statistics)
    torch.testing.assert_close(found, merge_state_dicts("linear", models()))


def transposed(model):
    return {name: tensor.T.contiguous() if tensor.dim() == 2 else tensor for name, tensor in model.items()}


def test_weights_that_are_stored_by_input_give_the_transposed_result():
    found = merge_state_dicts("regmean", [transposed(m) for m in models()], statistics=grams())
    expected = merge_state_dicts("regmean", models(), statistics=grams())
    torch.testing.assert_close(found, transposed(expected))


def test_a_square_weight_is_stored_as_the_others_of_its_layer():
    def layered(model, number):
        square = {"h.0.square.weight": drawn(IN, IN, seed=40 + number).float()}
        return {"h.0.fc.weight": model["fc.weight"], **square}

    sources = [layered(model, number) for number, model in enumerate(models())]
    statistics = [dict.fromkeys(sources[0], each["fc.weight"]) for each in grams()]
    expected = merge_state_dicts("regmean", sources, statistics=statistics)
    by_input = merge_state_dicts("regmean", [transposed(source) for source in sources], statistics=statistics)
    torch.testing.assert_close(by_input, transposed(expected))
    alone = [{"w.weight": source["h.0.square.weight"]} for source in sources]
    found = merge_state_dicts("regmean", alone, statistics=[{"w.weight": each["fc.weight"]} for each in grams()])
    torch.testing.assert_close(found["w.weight"], expected["h.0.square.weight"])


@pytest.mark.parametrize("tied", [True, False])
def test_layers_of_gpt2_are_merged_by_the_grams_that_are_measured_on_it(tied):
    """Every Conv1D in its own orientation, square or not; the head where it is not the embedding."""
    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=8, tie_word_embeddings=tied)
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 15, 16]])
    networks, statistics = [], []
    for seed in range(2):
        torch.manual_seed(seed)
        networks.append(GPT2LMHeadModel(config))
        statistics.append(input_grams(networks[-1], [(tokens, None)]))
    sources = [dict(network.state_dict()) for network in networks]
    found = merge_state_dicts("regmean", sources, statistics=statistics)
    mean = merge_state_dicts("linear", sources)
    for name in sources[0]:
        expected = mean[name]
        if name in statistics[0] and not (tied and name == "lm_head.weight"):
            by_input = name != "lm_head.weight"
            weights = [source[name].T if by_input else source[name] for source in sources]
            solved = by_inverse(weights, [each[name] for each in statistics], (0.5, 0.5), 0.9).float()
            expected = solved.T if by_input else solved
        torch.testing.assert_close(found[name], expected)


def with_constant(rows=20):
    x = [torch.cat([each, torch.ones(rows, 1, dtype=torch.float64)], dim=1) for each in inputs(rows)]
    return x, [{"fc.weight": (each.T @ each / rows).float()} for each in x]


@pytest.mark.parametrize("stored_by_input", [False, True])
def test_a_joint_bias_is_the_last_column_of_the_solution(stored_by_input):
    x, statistics = with_constant()
    sources = [transposed(m) for m in models()] if stored_by_input else models()
    parameters, options = {"scaling": 1.0}, {"bias": "joint"}
    found = merge_state_dicts("regmean", sources, parameters=parameters, options=options, statistics=statistics)
    found = transposed(found) if stored_by_input else found
    whole = [torch.cat([m["fc.weight"], m["fc.bias"][:, None]], dim=1).double() for m in models()]
    variable = torch.cat([found["fc.weight"], found["fc.bias"][:, None]], dim=1).double().requires_grad_()
    sum((each @ (variable - w).T).square().sum() / len(each) for each, w in zip(x, whole, strict=True)).backward()
    torch.testing.assert_close(variable.grad, torch.zeros(OUT, IN + 1, dtype=torch.float64), atol=1e-4, rtol=0)


def test_a_layer_without_a_bias_has_no_constant_under_joint():
    sources = [{"fc.weight": m["fc.weight"]} for m in models()]
    joint, mean = (
        merge_state_dicts("regmean", sources, options={"bias": bias}, statistics=grams()) for bias in ("joint", "mean")
    )
    torch.testing.assert_close(joint, mean)


def test_a_tied_weight_is_the_mean_and_stays_tied():
    def tied(model):
        return {"embed.weight": model["fc.weight"], "lm_head.weight": model["fc.weight"]}

    statistics = [{"lm_head.weight": each["fc.weight"]} for each in grams()]
    found = merge_state_dicts("regmean", [tied(m) for m in models()], statistics=statistics)
    mean = merge_state_dicts("linear", models())["fc.weight"]
    torch.testing.assert_close(found, {"embed.weight": mean, "lm_head.weight": mean})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_result_has_the_dtype_of_the_sources(dtype):
    found = merge_state_dicts("regmean", models(dtype), statistics=grams(dtype=torch.float64))
    assert {tensor.dtype for tensor in found.values()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fewer_rows_than_inputs_are_singular_without_scaling_and_ridge(dtype):
    """Three sources with one row each, so that the sum of Grams has rank 3 of 5."""
    few = grams(rows=1, dtype=dtype)
    with pytest.raises(InvalidInput, match=r"the sum of the Grams of tensor 'fc.weight' is singular"):
        merge_state_dicts("regmean", models(), parameters={"scaling": 1.0}, statistics=few)
    for parameters in ({"scaling": 0.9}, {"scaling": 1.0, "ridge": 1e-3}):
        found = merge_state_dicts("regmean", models(), parameters=parameters, statistics=few)
        assert bool(found["fc.weight"].isfinite().all())


def dead():
    return [
        {"fc.weight": each["fc.weight"] * (torch.arange(IN) != 2) * (torch.arange(IN) != 2)[:, None]}
        for each in grams()
    ]


def test_an_input_that_is_always_zero_is_singular_and_with_a_ridge_the_mean():
    with pytest.raises(InvalidInput, match=r"'fc.weight' is singular: input 2 is 0"):
        merge_state_dicts("regmean", models(), statistics=dead())
    found = merge_state_dicts("regmean", models(), parameters={"ridge": 1e-6}, statistics=dead())
    torch.testing.assert_close(found["fc.weight"][:, 2], merge_state_dicts("linear", models())["fc.weight"][:, 2])


def spoiled(gram):
    return [grams()[0], {"fc.weight": gram}, grams()[2]]


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        (None, "statistics is a list of 3 mappings"),
        (grams()[:2], "2 mappings"),
        (spoiled(torch.eye(IN + 1)), r"is \[6, 6\], that of source 0 \[5, 5\]"),
        ([{"fc.weight": torch.eye(IN + 2)}] * N, "is of 7 inputs"),
        ([{"fc.bias": torch.eye(OUT)}] * N, r"the weight has the shape \[4\]"),
        (spoiled(torch.ones(IN)), r"give \[inputs, inputs\]"),
        (spoiled(torch.eye(IN).long()), "give a floating-point tensor"),
        (spoiled("gram"), "is str"),
        (spoiled(torch.full((IN, IN), torch.nan)), "not finite"),
        (spoiled(torch.ones(IN, IN).triu()), "not symmetric"),
        ([{"fc.weight": torch.eye(IN) - 0.9}] * N, "not positive definite"),
        ([{"fc": torch.eye(IN)}] * N, "name no tensor of the model"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(statistics, message):
    with pytest.raises(InvalidInput, match=message):
        merge_state_dicts("regmean", models(), statistics=statistics)


def test_a_gram_without_the_constant_is_refused_under_joint():
    with pytest.raises(InvalidInput, match="the constant 1 of `bias: joint`"):
        merge_state_dicts("regmean", models(), options={"bias": "joint"}, statistics=grams())


def test_weights_that_are_all_zero_are_refused():
    with pytest.raises(MergeError, match="all 0"):
        merge_state_dicts("regmean", models(), parameters={"weight": 0.0}, statistics=grams())


def test_the_number_of_threads_is_left_as_it_was():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        two = merge_state_dicts("regmean", models(), statistics=grams())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    one = merge_state_dicts("regmean", models(), statistics=grams())
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_defaults_are_those_of_the_paper():
    info = METHODS["regmean"]
    assert {parameter.name: parameter.default for parameter in info.parameters} == {
        "weight": 1.0,
        "scaling": 0.9,
        "ridge": 0.0,
    }
    assert {option.name: option.choices for option in info.options} == {"solve": ("fp64",), "bias": ("mean", "joint")}


@pytest.mark.parametrize("ridge", [1e-6, 1e-5, 1e-3])
def test_a_small_ridge_is_enough_where_the_grams_alone_are_singular(ridge):
    rows = drawn(1, 4)
    model, gram = {"w": drawn(3, 4)}, {"w": rows.T @ rows}
    found = merge_state_dicts("regmean", [model] * 2, None, {"scaling": 1.0, "ridge": ridge}, statistics=[gram] * 2)
    assert torch.allclose(found["w"], model["w"], atol=1e-5)
