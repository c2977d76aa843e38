"""Exact magnitudes of given ranks, and what is tied with them: those of a sorted vector, by loops and by torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from evomerge.elementwise.breadcrumbs import Bands
from evomerge.elementwise.ties import trimming_of
from evomerge.merging import RuleTensors
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.native import ranked_magnitudes
from evomerge.native.compiled_loops import compiled_library
from evomerge.native.ranked_magnitudes import Expected, end_of_equal
from evomerge.passes.threshold_tables import ThresholdTables
from evomerge.tensors import order_statistics
from evomerge.tensors.order_statistics import Ranked
from evomerge.tensors.task_vectors import TaskVectors

FLOATS = [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.bfloat16)]
COUNTS = [1, 2, 700, 16_385, 600_003]


@pytest.fixture(params=["loops", "torch"])
def path(request, monkeypatch):
    """Both ways to make the pass."""
    compiled_library(ranked_magnitudes.SOURCE)
    if request.param == "torch":
        monkeypatch.setattr(ranked_magnitudes, "_loops", lambda: None)
    return request.param


def models(count, dtypes=(torch.bfloat16, torch.bfloat16), seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(count, generator=generator) * 0.02
    source = base + torch.randn(count, generator=generator) * 0.002
    return base.to(dtypes[0]), source.to(dtypes[1])


def magnitudes_of(base, source):
    return (source.float() - base.float()).abs()


def by_sorting(base, source, ranks):
    ordered = np.sort(magnitudes_of(base, source).numpy())
    values = [ordered[rank - 1] for rank in ranks]
    ends = [[int(np.searchsorted(ordered, value, side)) for side in ("left", "right")] for value in values]
    return [Ranked(float(value), first, last - first) for value, (first, last) in zip(values, ends, strict=True)]


@pytest.mark.usefixtures("path", "torch_threads")
@pytest.mark.parametrize("dtypes", FLOATS)
@pytest.mark.parametrize("count", COUNTS)
def test_magnitudes_of_ranks_are_those_of_the_sorted_vector(count, dtypes):
    base, source = models(count, dtypes)
    ranks = sorted({1, 1 + count // 10, 1 + count // 3, max(1, count - count // 100), count})
    found = ThresholdTables({"w": base}, [{"w": source}]).exact_magnitudes(0, "w", ranks)
    assert found == by_sorting(base, source, ranks)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda count: torch.zeros(count), id="all alike"),
        pytest.param(lambda count: torch.arange(count) % 2 * 0.5, id="half left alone"),
        pytest.param(lambda count: (torch.arange(count) % 5).float(), id="few magnitudes"),
        pytest.param(lambda count: torch.where(torch.arange(count) % 9 == 0, 3e38, 1.0), id="huge ones"),
    ],
)
def test_runs_of_equal_magnitudes_are_counted(change):
    base = torch.zeros(100_000)
    source = change(len(base))
    tables = ThresholdTables({"w": base}, [{"w": source}])
    ranks = [1, 40_000, 50_000, 50_001, 99_999, 100_000]
    assert tables.exact_magnitudes(0, "w", ranks) == by_sorting(base, source, ranks)


@pytest.mark.usefixtures("path")
def test_what_is_not_where_it_is_expected_is_left_to_the_definition():
    base, source = models(50_000, (torch.float32, torch.float32))
    low, middle, high = (each.value for each in by_sorting(base, source, [10_000, 10_100, 10_200]))

    def found(rank, low, high):
        return ranked_magnitudes.ranked_magnitudes(base, source, [Expected(rank, low, high)])

    assert found(10_100, low, high) == [Ranked(middle, 10_099, 1)]
    assert found(9_999, low, high) is None
    assert found(10_201, low, high) is None
    source[7] = math.nan
    assert found(10_100, low, high) is None
    assert ThresholdTables({"w": base.double()}, [{"w": source}]).exact_magnitudes(0, "w", [3]) is None


def test_more_than_there_is_room_for_is_left_to_the_definition(monkeypatch):
    base, source = models(50_000, (torch.float32, torch.float32))
    low, middle, high = by_sorting(base, source, [1_000, 25_000, 49_000])
    wide = [Expected(25_000, low.value, high.value)]
    assert ranked_magnitudes.ranked_magnitudes(base, source, wide) is None
    monkeypatch.setattr(ranked_magnitudes, "ROOM", 50_000)
    assert ranked_magnitudes.ranked_magnitudes(base, source, wide) == [middle]


@pytest.mark.usefixtures("torch_threads")
@pytest.mark.parametrize("count", [5, 3_000, 600_003])
def test_the_end_of_equal_magnitudes_is_that_of_the_definition(count):
    base, source = models(count)
    magnitudes = magnitudes_of(base, source)
    value = float(magnitudes.median())
    equal = int((magnitudes == value).count_nonzero())
    assert equal
    for wanted in {1, equal // 2 or 1, equal}:
        expected = order_statistics.end_of_equal([magnitudes], value, wanted)
        assert end_of_equal(base, source, value, wanted) == expected


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("kept_rule", ["tied", "exact"])
def test_bands_and_ties_are_the_same_with_tables_and_without(kept_rule):
    base, source = models(300_000)
    left_alone = source.clone()
    left_alone[:200_000] = base[:200_000]
    sources = [{"w": source}, {"w": left_alone}]
    tables = ThresholdTables({"w": base}, sources)

    def rule(method, thresholds, options, **given):
        return RuleTensors(
            names=("w",),
            base={"w": base},
            sources=sources,
            parameters=resolve_parameters(method, given, len(sources)),
            options=resolve_options(method, options),
            thresholds=thresholds,
        )

    for density, gamma in ((0.9, 0.01), (0.2, 0.3), (0.5, 0.0), (0.0, 0.5)):
        with_tables, without = (
            Bands(rule("breadcrumbs", each, {"kept_rule": kept_rule}, density=density, gamma=gamma))
            for each in (tables, None)
        )
        for index in range(len(sources)):
            assert with_tables(index, "w") == without(index, "w")

    if kept_rule == "exact":
        known, counted = (rule("ties", each, {"kept_rule": "exact"}, density=0.25) for each in (tables, None))
        ends = []
        for tensors in (known, counted):
            trimming = trimming_of(tensors, TaskVectors(tensors))
            cuts = trimming.cuts("w")
            ends.append([trimming.end_of_ties(index, "w", cut) for index, cut in enumerate(cuts)])
        assert ends[0] == ends[1]
