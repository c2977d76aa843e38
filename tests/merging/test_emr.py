"""EMR-Merging: examples worked by hand, and its definition in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import InvalidInput
from evomerge.merging import merge_state_dicts
from evomerge.merging.emr import elect, mask, merge_emr, rescaler
from evomerge.tensors.rule_tensors import RuleTensors

VALUES = st.sampled_from([0.0, 0.25, -0.25, 0.5, -1.0, 1.0, 2.0, -3.0])


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values)


# One tensor of five elements. Column by column: agreement; 3 against -1; a zero mean, so negative; all zero; one alone.
FIRST = {"w": t(1.0, 3.0, 2.0, 0.0, 0.0)}
SECOND = {"w": t(2.0, -1.0, -2.0, 0.0, -4.0)}


def merged(base, sources, task, rule="flat_sum", scope_names=None):
    names = tuple(sorted(base))
    options = {"task": task, "rescaler": rule}
    tensors = RuleTensors(
        names=names, base=base, sources=tuple(sources), parameters={}, options=options, scope_names=scope_names
    )
    return dict(merge_emr(tensors))


def plain_elected(columns: list[tuple[float, ...]]) -> list[float]:
    result = []
    for column in columns:
        sign = 1 if sum(column) > 0 else -1
        result.append(sign * max(abs(value) if value * sign > 0 else 0.0 for value in column))
    return result


def test_the_elected_vector_has_the_sign_of_the_mean_and_the_largest_magnitude_of_that_sign():
    assert elect([FIRST, SECOND])["w"].tolist() == [2.0, 3.0, -2.0, 0.0, -4.0]


def test_a_mask_marks_what_has_the_elected_sign():
    elected = elect([FIRST, SECOND])
    assert mask(FIRST, elected)["w"].tolist() == [True, True, False, False, False]
    assert mask(SECOND, elected)["w"].tolist() == [True, False, True, False, True]
    assert mask(FIRST, elected)["w"].dtype == torch.bool


def test_the_rescaler_restores_the_sum_of_magnitudes():
    elected = elect([FIRST, SECOND])
    assert rescaler(FIRST, elected) == 6 / 5
    assert rescaler(SECOND, elected) == 9 / 8


def test_tensor_mean_counts_a_bias_as_much_as_a_matrix():
    first = {"w": t(1.0, 1.0, 1.0, 1.0), "b": t(4.0)}
    second = {"w": t(2.0, 2.0, 2.0, 2.0), "b": t(1.0)}
    elected = elect([first, second])
    assert rescaler(first, elected) == (4 + 4) / (8 + 4)
    assert rescaler(first, elected, rule="tensor_mean") == (1 + 4) / (2 + 4)


def test_the_rescaler_is_zero_where_a_task_vector_is_zero_or_always_outvoted():
    zero, other = {"w": t(0.0, 0.0)}, {"w": t(1.0, -2.0)}
    elected = elect([zero, other])
    assert [rescaler(zero, elected, rule) for rule in ("flat_sum", "tensor_mean")] == [0.0, 0.0]
    outvoted = {"w": t(-0.5, 1.0)}
    elected = elect([outvoted, other])
    assert rescaler(outvoted, elected) == 0.0


def test_values_whose_product_underflows_still_agree():
    tiny = {"w": t(1e-30, -1e-30)}
    assert mask(tiny, elect([tiny, tiny]))["w"].tolist() == [True, True]


@given(st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=9), st.integers(0, 2))
@settings(max_examples=150, deadline=None)
def test_the_merge_is_its_definition(columns, task):
    vectors = [{"w": t(*[column[index] for column in columns])} for index in range(3)]
    elected = plain_elected(columns)
    own = [column[task] for column in columns]
    masks = [1.0 if value * uni > 0 else 0.0 for value, uni in zip(own, elected, strict=True)]
    mass = sum(abs(uni) * m for uni, m in zip(elected, masks, strict=True))
    scale = sum(map(abs, own)) / mass if mass else 0.0
    assert elect(vectors)["w"].tolist() == elected
    assert rescaler(vectors[task], elect(vectors)) == pytest.approx(scale, rel=1e-12)

    base = {"w": torch.arange(len(columns), dtype=torch.float32)}
    sources = [{"w": base["w"] + vector["w"]} for vector in vectors]
    expected = [i + scale * m * uni for i, (m, uni) in enumerate(zip(masks, elected, strict=True))]
    assert merged(base, sources, task)["w"].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rule", ["flat_sum", "tensor_mean"])
def test_a_merge_is_the_base_plus_the_rescaled_masked_elected_vector(rule):
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (7, 3), "b": (5,), "c": ()}
    base, *sources = [{n: torch.randn(s, generator=generator) for n, s in shapes.items()} for _ in range(4)]
    vectors = [{name: source[name] - base[name] for name in base} for source in sources]
    elected = elect(vectors)
    for task, vector in enumerate(vectors):
        agreeing, scale = mask(vector, elected), rescaler(vector, elected, rule)
        for name, tensor in merged(base, sources, task, rule).items():
            assert torch.allclose(tensor, base[name] + scale * agreeing[name] * elected[name], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_source_comes_back_as_it_was(dtype):
    generator = torch.Generator().manual_seed(3)
    base = {"w": torch.randn(1000, generator=generator).to(dtype)}
    source = {"w": (base["w"].float() + 1e-3 * torch.randn(1000, generator=generator)).to(dtype)}
    for rule in ("flat_sum", "tensor_mean"):
        assert torch.equal(merged(base, [source], 0, rule)["w"].to(dtype), source["w"])


def test_the_rescaler_is_one_number_for_the_whole_model(monkeypatch):
    base = {"a": torch.zeros(4), "b": torch.zeros(2)}
    first = {"a": t(1.0, 1.0, 1.0, 1.0), "b": t(4.0, 4.0)}
    second = {"a": t(2.0, 2.0, 2.0, 2.0), "b": t(1.0, 1.0)}
    whole = merged(base, [first, second], 0)
    monkeypatch.setattr("evomerge.tensors.rule_tensors.CPU_PIECE", 3)
    alone = dict(
        merge_emr(
            RuleTensors(
                names=("a",),
                base=base,
                sources=(first, second),
                parameters={},
                options={"task": 0, "rescaler": "flat_sum"},
                scope_names=("b", "a"),
            )
        )
    )
    assert alone["a"].tolist() == whole["a"].tolist() == pytest.approx([2 * 12 / 16] * 4)


def test_merging_state_dicts_reconstructs_the_task_that_is_asked_for():
    base = {"w": torch.zeros(5).bfloat16(), "n": torch.tensor(7)}
    sources = [{"w": vector["w"].bfloat16(), "n": torch.tensor(8)} for vector in (FIRST, SECOND)]
    first, second = (merge_state_dicts("emr", sources, base, options={"task": task}) for task in (0, 1))
    assert first["w"].tolist() == (6 / 5 * t(2.0, 3.0, 0.0, 0.0, 0.0)).bfloat16().tolist()
    assert second["w"].tolist() == (9 / 8 * t(2.0, 0.0, -2.0, 0.0, -4.0)).bfloat16().tolist()
    assert first["w"].dtype == torch.bfloat16
    assert int(first["n"]) == 7


def test_elected_vectors_have_the_dtype_of_the_task_vectors():
    assert elect([{"w": t(1.0).bfloat16()}, {"w": t(3.0).bfloat16()}])["w"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: elect([]), "at least one"),
        (lambda: elect(FIRST), "list"),
        (lambda: elect([FIRST, {"v": t(1.0)}]), "same tensor names"),
        (lambda: elect([FIRST, {"w": t(1.0)}]), "shapes"),
        (lambda: elect([FIRST, FIRST["w"]]), "Tensor"),
        (lambda: elect([{"w": [1.0]}]), "list"),
        (lambda: elect([{"w": torch.ones(1, dtype=torch.complex64)}]), "real"),
        (lambda: mask(FIRST, {"w": t(1.0)}), "shapes"),
        (lambda: rescaler(FIRST, {}), "same tensor names"),
        (lambda: rescaler(FIRST, FIRST, rule="flat_sun"), "flat_sum"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(InvalidInput, match=message):
        call()


def test_nan_is_never_hidden():
    elected = elect([{"w": t(math.nan, 1.0)}, {"w": t(1.0, 1.0)}])["w"]
    assert elected.isnan().tolist() == [True, False]


def test_one_source_comes_back_even_where_its_difference_from_the_base_would_be_rounded_away():
    base, source = {"w": t(1e20, 1.0)}, {"w": t(1e-5, 3e-30)}
    assert torch.equal(merge_state_dicts("emr", [source], base, {}, {"task": 0})["w"], source["w"])
