"""PCB-Merging: an example worked by hand, and its definition written with sorted lists."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.elementwise.pcb import CLIPPED_SHARE, merge_pcb
from evomerge.errors import InvalidInput, MergeError
from evomerge.merging import RuleTensors, merge_state_dicts

VARIANTS = sorted(CLIPPED_SHARE)
VALUES = st.sampled_from([0.0, 0.01, -0.01, 0.2, -0.5, 1.0, -1.0, 1.5])


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def merged(base, sources, density=0.1, weight=1.0, variant="main", names=None):
    weights = tuple(weight) if isinstance(weight, (list, tuple)) else (weight,) * len(sources)
    scope = tuple(sorted(base))
    parameters, options = {"density": density, "weight": weights}, {"variant": variant}
    tensors = RuleTensors(
        names=names or scope,
        base=base,
        sources=tuple(sources),
        parameters=parameters,
        options=options,
        scope_names=scope,
    )
    return dict(merge_pcb(tensors))


def pcb(*task_vectors: list[float], **settings_) -> list[float]:
    """PCB of task vectors of one tensor on a base of zeros, in float64."""
    sources = [{"w": torch.tensor(vector, dtype=torch.float64)} for vector in task_vectors]
    return merged({"w": torch.zeros_like(sources[0]["w"])}, sources, **settings_)["w"].tolist()


def mm(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]


def sign(value: float) -> float:
    return (value > 0) - (value < 0)


def definition(vectors: list[list[float]], r: float, weights: list[float], variant: str) -> list[float]:
    n, d, c = len(vectors), len(vectors[0]), CLIPPED_SHARE[variant]
    magnitudes, signed, scaled = [], [], []
    for tau in vectors:
        ordered = sorted(map(abs, tau))
        low, high = ordered[int(d * c)], ordered[max(0, int(d * (1 - c)) - 1)]
        clipped = [min(max(abs(value), low), high) for value in tau]
        magnitudes.append(clipped)
        signed.append([sign(value) * size for value, size in zip(tau, clipped, strict=True)])
        scaled.append([sign(value) * size for value, size in zip(tau, mm(clipped), strict=True)])
    scores = []
    for i, tau in enumerate(vectors):
        beta = []
        for e, size in enumerate(mm(magnitudes[i])):
            if variant in ("main", "nlp"):
                between = math.tanh(tau[e] * sum(other[e] for other in vectors))
            elif variant == "vision":
                between = math.tanh(tau[e] * sum(other[e] for other in scaled))
            else:
                between = sum(math.tanh(scaled[i][e] * other[e]) for other in scaled)
            beta.append(math.exp(n * size**2) * between)
        b = sorted(beta)[min(d - 1, int(d * (1 - r)))]
        scores.append(mm([max(value, b) for value in beta]))
    return [
        sum(w * s[e] * c_[e] for w, s, c_ in zip(weights, scores, signed, strict=True))
        / max(sum(s[e] for s in scores), 1e-12)
        for e in range(d)
    ]


def test_an_example_worked_by_hand():
    # d = 4: |tau| is clipped to order statistics 0 and int(4 * 0.9999) - 1 = 2. n = 2.
    first, second = [0.1, -0.2, 0.3, 0.4], [0.1, 0.2, 0.5, -0.4]
    # A_1 = .1 .2 .3 .3 -> mm 0 .5 1 1           A_2 = .1 .2 .4 .4 -> mm 0 1/3 1 1
    # sum = .2 0 .8 0
    beta_1 = [math.tanh(0.02), 0.0, math.exp(2) * math.tanh(0.24), 0.0]
    beta_2 = [math.tanh(0.02), 0.0, math.exp(2) * math.tanh(0.40), 0.0]
    # density 0.5: b is order statistic 2, of the four sorted values the smaller positive one; only element 2 wins.
    assert sorted(beta_1)[2] == beta_1[0]
    assert pcb(first, second, density=0.5) == pytest.approx([0, 0, (0.3 + 0.4) / 2, 0])
    # density 0.75: b = 0, and element 0 competes with a small score.
    small = [beta_1[0] / beta_1[2], beta_2[0] / beta_2[2]]
    expected = (small[0] * 0.1 * 0.8 + small[1] * 0.1 * 2.0) / sum(small)
    result = pcb(first, second, density=0.75, weight=[0.8, 2.0])
    assert result == pytest.approx([expected, 0, (0.8 * 0.3 + 2.0 * 0.4) / 2, 0])


@pytest.mark.parametrize("variant", VARIANTS)
@given(
    columns=st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=12), r=st.sampled_from([0, 0.1, 0.5, 1])
)
@settings(max_examples=25, deadline=None)
def test_small_vectors_follow_the_definition(variant, columns, r):
    vectors = [[column[index] for column in columns] for index in range(3)]
    weights = [1.0, 0.5, -2.0]
    expected = definition(vectors, r, weights, variant)
    assert pcb(*vectors, density=r, weight=weights, variant=variant) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("density", [0.05, 0.8])
def test_large_vectors_follow_the_definition(variant, density):
    generator = torch.Generator().manual_seed(0)
    vectors = [0.05 * torch.randn(10000, generator=generator, dtype=torch.float64) for _ in range(3)]
    expected = torch.tensor(definition([tau.tolist() for tau in vectors], density, [1.0, 1.5, 0.5], variant))
    sources, base = [{"w": vector} for vector in vectors], torch.zeros(10000, dtype=torch.float64)
    assert torch.allclose(merged({"w": base}, sources, density, (1.0, 1.5, 0.5), variant)["w"], expected.double())

    narrow = merged({"w": base.float()}, [{"w": tau.float()} for tau in vectors], density, (1.0, 1.5, 0.5), variant)[
        "w"
    ]
    assert narrow.dtype == torch.float32
    # A score is a difference from the threshold: where all scores are tiny, float32 leaves little of them.
    assert float(((narrow - expected).abs() < 1e-5).float().mean()) > 0.99


@pytest.mark.parametrize("variant", VARIANTS)
def test_dividing_a_vector_into_tensors_changes_nothing(variant, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    base, *sources = [torch.randn(1000, generator=generator) for _ in range(4)]
    whole = merged({"w": base}, [{"w": source} for source in sources], 0.1, 1.3, variant)["w"]

    def cut(vector: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"a": vector[:1], "b": vector[1:601].reshape(20, 30), "c": vector[601:], "d": vector[:0]}

    parts = merged(cut(base), [cut(source) for source in sources], 0.1, 1.3, variant)
    assert torch.equal(torch.cat([parts[name].flatten() for name in "abc"]), whole)
    # One rule of a recipe merges some of the tensors, with the statistics of all of them.
    some = merged(cut(base), [cut(source) for source in sources], 0.1, 1.3, variant, names=("b",))
    assert torch.equal(some["b"], parts["b"])
    monkeypatch.setattr("evomerge.tensors.rule_tensors.CPU_PIECE", 13)
    assert torch.equal(merged({"w": base}, [{"w": source} for source in sources], 0.1, 1.3, variant)["w"], whole)


def test_merging_state_dicts_is_the_same_with_defaults_lists_and_dtypes_kept():
    generator = torch.Generator().manual_seed(5)
    base, *sources = [{"w": torch.randn(300, generator=generator).bfloat16(), "n": torch.tensor(7)} for _ in range(3)]
    result = merge_state_dicts("pcb", sources, base)
    floats = [{"w": model["w"]} for model in (base, *sources)]
    assert torch.equal(result["w"], merged(floats[0], floats[1:])["w"].bfloat16())
    assert int(result["n"]) == 7
    changed = merge_state_dicts("pcb", sources, base, {"density": 0.3, "weight": [1.5, 0.5]}, {"variant": "vision_es"})
    assert torch.equal(changed["w"], merged(floats[0], floats[1:], 0.3, (1.5, 0.5), "vision_es")["w"].bfloat16())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": None}, "give the base"),
        ({"parameters": {"density": [0.1, 0.1]}}, "one number, not one per source"),
        ({"parameters": {"density": 1.1}}, "outside"),
        ({"parameters": {"weight": [1.0]}}, "1 values for 2 sources"),
        ({"options": {"variant": "paper_softmax"}}, "variant"),
        ({"statistics": [{}, {}]}, "uses no statistics"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    sources = [{"w": torch.ones(4)}, {"w": torch.zeros(4)}]
    with pytest.raises(InvalidInput, match=message):
        merge_state_dicts("pcb", sources, **{"base": {"w": torch.zeros(4)}, **arguments})


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("vector", [[0.25] * 6, [0.0] * 6, [-0.5], [0.1, 0.1, 0.1, -0.1]])
def test_constant_vectors_merge_to_something_finite(variant, vector):
    for vectors in ([vector], [vector, vector], [vector, [0.0] * len(vector)]):
        assert all(map(math.isfinite, pcb(*vectors, variant=variant)))


def test_a_constant_vector_competes_with_no_one_and_leaves_the_base():
    assert pcb([0.25] * 6, [0.25] * 6) == [0.0] * 6


def test_weights_of_zero_give_the_base():
    base = {"w": torch.arange(50.0)}
    sources = [{"w": base["w"] + torch.linspace(-1, 1, 50)}] * 2
    assert torch.equal(merged(base, sources, weight=0.0)["w"], base["w"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_hundred_sources_stay_finite(variant):
    generator = torch.Generator().manual_seed(2)
    sources = [{"w": torch.randn(64, generator=generator)} for _ in range(100)]
    result = merged({"w": torch.zeros(64)}, sources, 0.2, 1.0, variant)["w"]
    expected = definition([source["w"].tolist() for source in sources], 0.2, [1.0] * 100, variant)
    assert torch.allclose(result, torch.tensor(expected), atol=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused_by_name_rather_than_clipped(value):
    sources = [{"w": torch.arange(20.0)}, {"w": t(*map(float, range(19)), value)}]
    with pytest.raises(MergeError, match="'w'"):
        merged({"w": torch.zeros(20)}, sources)
