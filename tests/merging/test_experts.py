"""Experts inside one checkpoint: worked by hand, and regmean against its least squares problem."""

from __future__ import annotations

import math

import pytest
import torch

from evomerge.catalogue.expert_names import find_experts
from evomerge.errors import InvalidInput, MergeError
from evomerge.merging.experts import merge_experts

PATTERNS = ["blocks.*.attn.{expert}.*", "blocks.*.norm.{expert}.*"]
EXPERTS = ["v", "l", "vl"]


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def checkpoint() -> dict[str, torch.Tensor]:
    """Block 0 has two experts, block 1 three; a norm has one."""
    return {
        "embed.weight": t(7.0, 8.0),
        "blocks.0.attn.v.qkv.weight": t(1.0, 2.0),
        "blocks.0.attn.l.qkv.weight": t(3.0, -2.0),
        "blocks.0.gamma": t(0.5),
        "blocks.1.attn.vl.qkv.weight": t(9.0, 3.0),
        "blocks.1.attn.v.qkv.weight": t(1.0, 2.0),
        "blocks.1.attn.l.qkv.weight": t(3.0, -2.0),
        "blocks.1.norm.vl.weight": t(4.0),
        "head.v.weight": t(1.0),
    }


def merged(method="interpolation", **settings_):
    return merge_experts(checkpoint(), PATTERNS, EXPERTS, method, **settings_)


# --- names ---


def test_a_shared_name_is_the_name_without_the_expert_and_one_dot():
    names = ["a.v.w", "a.l.w", "v.b", "l.b", "c.l", "c.v", "other"]
    assert find_experts(names, ["a.{expert}.w", "{expert}.b", "c.{expert}"], ["v", "l"]) == {
        "a.w": ("a.v.w", "a.l.w"),
        "b": ("v.b", "l.b"),
        "c": ("c.v", "c.l"),
    }


def test_a_star_matches_dots_and_an_expert_is_a_whole_segment():
    names = ["x.y.z.attn.vl.w", "x.attn.v.w", "x.attn.vx.w", "attn.v.w"]
    assert find_experts(names, ["*.attn.{expert}.*"], ["v", "vl"]) == {
        "x.y.z.attn.w": ("x.y.z.attn.vl.w",),
        "x.attn.w": ("x.attn.v.w",),
    }


def test_a_tensor_that_two_patterns_match_in_the_same_way_is_one_copy():
    assert find_experts(["a.v.w"], ["a.{expert}.*", "*.{expert}.w"], ["v"]) == {"a.w": ("a.v.w",)}


def test_what_matches_nothing_is_kept_and_a_lone_copy_becomes_the_shared_tensor():
    before, after = checkpoint(), merged()
    assert list(after) == [
        "embed.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.0.gamma",
        "blocks.1.attn.qkv.weight",
        "blocks.1.norm.weight",
        "head.v.weight",
    ]
    for name in ("embed.weight", "blocks.0.gamma", "head.v.weight"):
        assert torch.equal(after[name], before[name])
    for method, extra in (
        ("interpolation", {}),
        ("arithmetic", {"seed": seed()}),
        ("regmean", {"statistics": grams()}),
    ):
        assert torch.equal(merged(method, **extra)["blocks.1.norm.weight"], t(4.0))


def test_no_memory_is_shared_with_the_checkpoint():
    tensors = checkpoint()
    for tensor in merge_experts(tensors, PATTERNS, EXPERTS, "interpolation").values():
        tensor.zero_()
    assert all(torch.equal(tensor, checkpoint()[name]) for name, tensor in tensors.items())


# --- interpolation ---


def test_two_experts_are_interpolated_and_a_third_takes_a_third():
    result = merged(parameters={"a": 0.75})
    two = t(0.75 * 1 + 0.25 * 3, 0.75 * 2 + 0.25 * -2)
    assert torch.allclose(result["blocks.0.attn.qkv.weight"], two)
    assert torch.allclose(result["blocks.1.attn.qkv.weight"], 2 / 3 * two + t(9.0, 3.0) / 3)


def test_the_default_is_the_mean_and_the_first_expert_is_the_first_named():
    assert torch.allclose(merged()["blocks.0.attn.qkv.weight"], t(2.0, 0.0))
    swapped = merge_experts(checkpoint(), PATTERNS, ["l", "v", "vl"], "interpolation", {"a": 1.0})
    assert torch.equal(swapped["blocks.0.attn.qkv.weight"], t(3.0, -2.0))


# --- modality arithmetic ---


def seed() -> dict[str, torch.Tensor]:
    return {"blocks.0.attn.qkv.weight": t(1.0, 1.0), "blocks.1.attn.qkv.weight": t(0.0, 1.0), "unused": t(0.0)}


def test_arithmetic_adds_the_differences_from_the_seed():
    result = merged("arithmetic", seed=seed(), parameters={"lambda": 0.5})
    assert torch.allclose(result["blocks.0.attn.qkv.weight"], t(1 + 0.5 * (0 + 2), 1 + 0.5 * (1 - 3)))
    assert torch.allclose(result["blocks.1.attn.qkv.weight"], t(0.5 * (1 + 3 + 9), 1 + 0.5 * (1 - 3 + 2)))
    default = merged("arithmetic", seed=seed())["blocks.0.attn.qkv.weight"]
    assert torch.allclose(default, t(1 + 0.75 * 2, 1 - 0.75 * 2))


def test_sequential_legacy_moves_the_seed_from_expert_to_expert():
    rate, options = 0.75, {"arithmetic": "sequential_legacy"}
    result = merged("arithmetic", seed=seed(), options=options)["blocks.0.attn.qkv.weight"]
    v, l_ = t(1.0, 2.0), t(3.0, -2.0)
    start = seed()["blocks.0.attn.qkv.weight"]
    assert torch.allclose(result, (1 - rate) ** 2 * start + rate * (1 - rate) * v + rate * l_)
    swapped = merge_experts(checkpoint(), PATTERNS, ["l", "v", "vl"], "arithmetic", {}, options, seed())
    assert torch.allclose(
        swapped["blocks.0.attn.qkv.weight"], (1 - rate) ** 2 * start + rate * (1 - rate) * l_ + rate * v
    )


# --- regmean ---


def grams() -> dict[str, torch.Tensor]:
    """A single Gram: without any regmean is refused."""
    return {"blocks.0.attn.v.qkv.weight": torch.eye(2)}


def linear_experts(inputs: int = 5, outputs: int = 3) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    weights = {f"fc.{expert}.weight": torch.randn(outputs, inputs, generator=generator) for expert in ("v", "l")}
    biases = {f"fc.{expert}.bias": torch.randn(outputs, generator=generator) for expert in ("v", "l")}
    samples = {name: torch.randn(40, inputs, generator=generator, dtype=torch.float64) for name in weights}
    return {**weights, **biases}, samples


def test_regmean_minimises_the_squared_differences_of_the_outputs():
    tensors, samples = linear_experts()
    statistics = {name: x.T @ x for name, x in samples.items()}
    result = merge_experts(tensors, ["fc.{expert}.*"], ["v", "l"], "regmean", statistics=statistics)
    inputs = torch.cat(list(samples.values()))
    outputs = torch.cat([x @ tensors[name].double().T for name, x in samples.items()])
    best = torch.linalg.lstsq(inputs, outputs).solution.T
    assert torch.allclose(result["fc.weight"].double(), best, atol=1e-6)
    assert torch.allclose(result["fc.bias"], (tensors["fc.v.bias"] + tensors["fc.l.bias"]) / 2)


def test_scaling_shrinks_what_is_off_the_diagonal():
    tensors = {"fc.v.weight": t(1.0, 2.0)[None], "fc.l.weight": t(3.0, 6.0)[None]}
    statistics = {
        "fc.v.weight": torch.tensor([[1.0, 5.0], [5.0, 3.0]]),
        "fc.l.weight": torch.tensor([[3.0, 7.0], [7.0, 1.0]]),
    }
    arguments = (tensors, ["fc.{expert}.*"], ["v", "l"], "regmean", {"scaling": 0.0}, {}, None, statistics)
    assert torch.allclose(merge_experts(*arguments)["fc.weight"], torch.tensor([[(1 + 9) / 4, (6 + 6) / 4]]))


def test_an_expert_without_a_gram_makes_the_plain_mean():
    tensors, samples = linear_experts()
    statistics = {"fc.v.weight": samples["fc.v.weight"].T @ samples["fc.v.weight"]}
    result = merge_experts(tensors, ["fc.{expert}.*"], ["v", "l"], "regmean", statistics=statistics)
    assert torch.allclose(result["fc.weight"], (tensors["fc.v.weight"] + tensors["fc.l.weight"]) / 2)


def test_a_singular_sum_of_grams_is_refused_by_name_and_scaling_cures_it():
    tensors, samples = linear_experts()
    statistics = {name: x[:2].T @ x[:2] for name, x in samples.items()}  # rank 4 of 5
    arguments = (tensors, ["fc.{expert}.*"], ["v", "l"], "regmean")
    with pytest.raises(InvalidInput, match=r"'fc.weight' is singular.*scaling below 1"):
        merge_experts(*arguments, statistics=statistics)
    assert merge_experts(*arguments, {"scaling": 0.9}, statistics=statistics)["fc.weight"].isfinite().all()


# --- dtypes ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_result_has_the_dtype_of_the_experts_and_is_rounded_once(dtype):
    generator = torch.Generator().manual_seed(4)
    v, l_ = (torch.randn(100, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    result = merge_experts({"a.v": v, "a.l": l_}, ["a.{expert}"], ["v", "l"], "interpolation", {"a": 0.3})["a"]
    assert result.dtype == dtype
    assert torch.equal(result, (0.3 * v.double() + 0.7 * l_.double()).to(dtype))


def test_equal_integer_copies_become_the_shared_tensor_and_different_ones_are_refused():
    index = {"a.v": torch.tensor([1, 2]), "a.l": torch.tensor([1, 2])}
    assert torch.equal(merge_experts(index, ["a.{expert}"], ["v", "l"], "interpolation")["a"], index["a.v"])
    index["a.l"] = torch.tensor([1, 3])
    with pytest.raises(InvalidInput, match="integers cannot be merged"):
        merge_experts(index, ["a.{expert}"], ["v", "l"], "interpolation")


# --- bad input ---

PAIR = {"a.v": t(1.0), "a.l": t(2.0)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"patterns": ["mlp.{expert}.*"]}, "no tensor of the experts v, l matches"),
        ({"patterns": ["b.{expert}", "mlp.{expert}.*"]}, "matches 'b.{expert}' or 'mlp"),
        ({"method": ["regmean"]}, "unknown method for experts"),
        ({"parameters": None}, "parameters must be {name: value}, but got None"),
        ({"options": [1]}, "options must be {name: value}"),
        ({"experts": ["x"]}, "no tensor of the experts x"),
        ({"patterns": ["a.*"]}, "names the expert once"),
        ({"patterns": ["{expert}.{expert}"]}, "names the expert once"),
        ({"patterns": "a.{expert}"}, "patterns is a list"),
        ({"patterns": []}, "patterns is a list"),
        ({"patterns": [7]}, "names the expert once"),
        ({"experts": []}, "experts is a list"),
        ({"experts": ["v", "v"]}, "different names"),
        ({"experts": ["v.l", "v"]}, "different names"),
        ({"method": "interpolate"}, "interpolation"),
        ({"parameters": {"b": 1.0}}, "parameter for experts 'b'"),
        ({"parameters": {"a": "0.5"}}, "finite number"),
        ({"parameters": {"a": math.nan}}, "finite number"),
        ({"options": {"arithmetics": "sum"}}, "arithmetic"),
        ({"options": {"arithmetic": "sequential"}}, "sequential_legacy"),
        ({"tensors": {**PAIR, "a.l": t(1.0, 2.0)}}, "one shape"),
        ({"tensors": {**PAIR, "a": t(1.0)}}, "there already"),
        ({"tensors": {"v": t(1.0), "l": t(1.0)}, "patterns": ["{expert}"]}, "no name"),
        ({"tensors": {"b.v.l": t(1.0)}, "patterns": ["b.{expert}*", "b*{expert}"]}, "more than one way"),
        ({"tensors": {"a.v.b": t(1.0), "a.b.v": t(1.0)}, "patterns": ["a.{expert}.b", "a.b.{expert}"]}, "both be 'v'"),
        ({"tensors": {**PAIR, "a.l": [1.0]}}, "must be a tensor"),
        ({"tensors": [t(1.0)]}, "checkpoint"),
        ({"method": "arithmetic"}, "seed"),
        ({"method": "arithmetic", "seed": {}}, "seed has no tensor 'a'"),
        ({"method": "arithmetic", "seed": {"a": t(1.0, 2.0)}}, "in the seed"),
        ({"method": "regmean"}, "statistics"),
        ({"method": "regmean", "statistics": {"a.v": torch.eye(1), "a.l": torch.eye(1)}}, "Gram of 'a.v'"),
        ({"experts": ["v", "l", "x", "y"], "tensors": {f"a.{e}": t(1.0) for e in "vlxy"}}, "two or three"),
    ],
)
def test_bad_input_is_refused(changed, message):
    given = {"tensors": PAIR, "patterns": ["a.{expert}"], "experts": ["v", "l"], "method": "interpolation", **changed}
    with pytest.raises(InvalidInput, match=message):
        merge_experts(**given)


def test_a_merge_that_overflows_is_an_error():
    huge = {"a.v": torch.tensor([6e4], dtype=torch.float16), "a.l": torch.tensor([6e4], dtype=torch.float16)}
    with pytest.raises(MergeError, match="'a'"):
        merge_experts(huge, ["a.{expert}"], ["v", "l"], "arithmetic", {"lambda": 1.0}, seed={"a": t(0.0)})


def test_a_pattern_of_a_longer_list_may_match_nothing():
    one = merge_experts(PAIR, ["a.{expert}", "mlp.{expert}.*"], ["v", "l"], "interpolation")
    assert one["a"].tolist() == merge_experts(PAIR, ["a.{expert}"], ["v", "l"], "interpolation")["a"].tolist()


def test_without_any_gram_regmean_is_the_plain_mean():
    assert merge_experts(PAIR, ["a.{expert}"], ["v", "l"], "regmean", statistics={})["a"].tolist() == [1.5]


@pytest.mark.parametrize(
    ("gram", "message"),
    [
        (torch.eye(2, dtype=torch.int64), "int64; give a floating-point tensor"),
        (torch.tensor([[1.0, math.nan], [math.nan, 1.0]]), "not finite"),
        (torch.eye(2) + 50 * torch.ones(2, 2).triu(1), "not symmetric"),
    ],
)
def test_a_matrix_that_is_no_gram_is_refused(gram, message):
    weights = {"a.v.weight": torch.ones(3, 2), "a.l.weight": torch.zeros(3, 2)}
    with pytest.raises(InvalidInput, match=message):
        merge_experts(weights, ["a.{expert}.*"], ["v", "l"], "regmean", statistics=dict.fromkeys(weights, gram))
