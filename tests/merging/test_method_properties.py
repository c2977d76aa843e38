"""Properties that follow from the description of a method alone, on tensors of every shape, the degenerate ones too."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import pytest
import torch

from evomerge.merging import RuleTensors, merge_rule, merge_state_dicts
from evomerge.methods import METHODS, MethodInfo
from evomerge.methods.resolve import resolve_options, resolve_parameters

SHAPES = {
    "scalar": (),
    "element": (1,),
    "vector": (7,),
    "row": (1, 6),
    "column": (6, 1),
    "matrix": (5, 6),
    "none": (0,),
}
Tensors = dict[str, torch.Tensor]

# Those with tensors are trained, those that align units read names as an architecture.
METHODS_OF_NUMBERS = {name: info for name, info in METHODS.items() if not info.tensors and info.same_shapes}
# What each source enters alike: the order of the others is part of their definition, or of their masks' keys.
SYMMETRIC = [
    name
    for name, info in METHODS_OF_NUMBERS.items()
    if info.sources is None and not (info.random or info.arrival or info.source_options)
]
# The values under which a parameter does nothing to a single source.
NEUTRAL = {
    "weight": 1.0,
    "scale": 1.0,
    "lambda": 1.0,
    "density": 1.0,
    "drop_rate": 0.0,
    "select_topk": 1.0,
    "agreement": 1.0,
}
# A control moves elements, the competition of PCB takes the smallest magnitude from all, Iso-C makes lengths equal.
NOT_ITSELF = {"permuted_arithmetic", "pcb", "iso_c"}


def models(count: int, spread: float = 0.1) -> list[Tensors]:
    """A base and sources at a distance from it."""
    generator = torch.Generator().manual_seed(4)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return [base] + [
        {name: each + spread * torch.randn(each.shape, generator=generator) for name, each in base.items()}
        for _ in range(count)
    ]


def statistics_of(info: MethodInfo, count: int) -> list[Tensors] | None:
    """Positive Fishers, or Grams that are not singular, another for each source."""
    if "statistics" not in info.needs or info.statistics is None:
        return None
    if info.statistics.name == "fisher":
        return [{name: torch.full(shape, 0.2 + 0.1 * i) for name, shape in SHAPES.items()} for i in range(count)]
    matrices = {name: shape for name, shape in SHAPES.items() if len(shape) == 2}
    return [{name: torch.eye(shape[1]) * (1.0 + i) for name, shape in matrices.items()} for i in range(count)]


def merged(name: str, base: Tensors, sources: list[Tensors], parameters: Any, statistics: Any = None) -> Tensors:
    options = {option.name: 0 for option in METHODS[name].source_options}
    given = statistics or statistics_of(METHODS[name], len(sources))
    return merge_state_dicts(name, sources, base, parameters, options, statistics=given, seed=5)


def assert_close(one: Tensors, two: Tensors) -> None:
    for name, tensor in one.items():
        torch.testing.assert_close(
            tensor, two[name], rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("name", METHODS_OF_NUMBERS)
def test_sources_that_have_not_moved_merge_to_the_base(name: str) -> None:
    base, info = models(0)[0], METHODS[name]
    sources = [{key: tensor.clone() for key, tensor in base.items()} for _ in range(info.sources or 3)]
    result = merged(name, base, sources, {})
    if "base" in info.needs:
        assert all(torch.equal(result[key], base[key]) for key in base)
    else:
        assert_close(result, base)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_sources_in_another_order_give_the_same_merge(name: str) -> None:
    base, *sources = models(3)
    info = METHODS[name]
    values = {each.name: [0.5 * (each.low + each.high), each.high, each.default] for each in info.per_source}
    statistics = statistics_of(info, 3)
    expected = merged(name, base, sources, values, statistics)
    for order in itertools.permutations(range(3)):
        parameters = {key: [each[i] for i in order] for key, each in values.items()}
        measured = None if statistics is None else [statistics[i] for i in order]
        assert_close(merged(name, base, [sources[i] for i in order], parameters, measured), expected)


@pytest.mark.parametrize("name", sorted({*SYMMETRIC, "passthrough", "opcm", "emr"} - NOT_ITSELF))
def test_one_source_alone_is_itself_where_nothing_is_left_out_of_it(name: str) -> None:
    base, source = models(1)
    neutral = {each.name: NEUTRAL[each.name] for each in METHODS[name].parameters if each.name in NEUTRAL}
    assert_close(merged(name, base, [source], neutral), source)


@pytest.mark.parametrize("name", [name for name, info in METHODS_OF_NUMBERS.items() if info.elementwise])
def test_an_element_depends_on_the_same_element_of_base_and_sources_alone(name: str) -> None:
    base, *sources = models(METHODS[name].sources or 3)
    whole = merged(name, base, sources, {})
    parts = [{key: model[key][2:4] for key in ("vector", "matrix")} for model in (base, *sources)]
    statistics = statistics_of(METHODS[name], len(sources))
    if statistics is not None:
        statistics = [{key: each[key][2:4] for key in ("vector", "matrix")} for each in statistics]
    part = merged(name, parts[0], parts[1:], {}, statistics)
    assert all(torch.equal(part[key], whole[key][2:4]) for key in part)


@pytest.mark.parametrize("name", METHODS_OF_NUMBERS)
def test_a_method_lets_go_of_a_tensor_before_it_makes_the_next(name: str) -> None:
    info = METHODS_OF_NUMBERS[name]
    count = info.sources or 2
    base, *sources = models(count)
    rule = RuleTensors(
        names=tuple(SHAPES),
        base=base,
        sources=tuple(sources),
        parameters=resolve_parameters(name, {}, count),
        options=resolve_options(name, {each.name: 0 for each in info.source_options}, n_sources=count),
        once=True,
        statistics=statistics_of(info, count),
        rounded=torch.bfloat16,
    )
    earlier: list[weakref.ref[torch.Tensor]] = []
    for _, tensor in merge_rule(name, rule):
        assert not any(each() is not None for each in earlier)
        earlier.append(weakref.ref(tensor))
        del tensor
    assert len(earlier) == len(SHAPES)
