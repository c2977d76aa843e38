"""Compiled loops: the tables of the definition, to the bit."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomerge.native import compiled_loops
from evomerge.native.compiled_loops import compiled_library
from evomerge.passes import magnitude_sorting, magnitude_tables
from evomerge.passes.magnitude_sorting import SOURCE, Desk, Loops, fast_table, this_machines_loops
from evomerge.passes.magnitude_tables import make_table

TINY = float(np.finfo(np.float32).smallest_subnormal)
FEW = st.sampled_from([0.0, TINY, 3 * TINY, 1e-38, 0.5, 1.0, 1.0000001, 2.0, 3e38])
ANY = st.floats(min_value=0, width=32, allow_infinity=False)


@pytest.fixture(scope="module")
def loops():
    return Loops.from_file(compiled_library(SOURCE))


def assert_same(loops, magnitudes, piece=10_000):
    def pieces():
        return magnitudes.split(piece)

    expected = make_table(pieces, len(magnitudes))
    found = loops.table(pieces, len(magnitudes), Desk())
    assert found.ranks.dtype == expected.ranks.dtype
    assert found.ranks.tolist() == expected.ranks.tolist()
    assert found.values.tobytes() == expected.values.tobytes()


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(FEW | ANY, min_size=1, max_size=200), at_once=st.sampled_from([1, 20, 1 << 20]))
def test_ties_zeros_and_denormals_are_those_of_the_definition(values, at_once, loops, monkeypatch):
    magnitudes = torch.tensor(values, dtype=torch.float32)
    monkeypatch.setattr(magnitude_tables, "SORTED_AT_ONCE", at_once)
    for short, all_knots in ((0, 0), (1 << 14, 0), (1 << 14, 1 << 14)):  # digit by digit, by numpy, and not thinned
        monkeypatch.setattr(magnitude_sorting, "SHORT", short)
        monkeypatch.setattr(magnitude_tables, "ALL_KNOTS", all_knots)
        assert_same(loops, magnitudes, piece=7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [16_384, 16_385, 100_001, 400_001, 1_700_003])
def test_tables_of_task_vectors_are_those_of_the_definition(loops, count, dtype):
    generator = torch.Generator().manual_seed(count)
    base = (torch.randn(count, generator=generator) * 0.02).to(dtype)
    source = (base.float() + torch.randn(count, generator=generator) * 0.002).to(dtype)
    assert_same(loops, (source.float() - base.float()).abs())


def test_a_table_does_not_depend_on_those_that_were_made_before(loops):
    desk, generator = Desk(), torch.Generator().manual_seed(0)
    for count in (100_000, 300, 20_000, 150_000):
        magnitudes = torch.randn(count, generator=generator).abs()
        first, second = (loops.table(lambda given=magnitudes: [given], count, each) for each in (desk, Desk()))
        assert first.ranks.tolist() == second.ranks.tolist()
        assert first.values.tobytes() == second.values.tobytes()


def test_weights_left_alone_and_heavy_tails_are_those_of_the_definition(loops):
    generator = torch.Generator().manual_seed(0)
    some = torch.randn(300_000, generator=generator)
    assert_same(loops, torch.cat([torch.zeros(200_000), some.abs()]))
    assert_same(loops, some.exp() ** 6)
    assert_same(loops, torch.zeros(300_000))


def test_a_scope_in_parts_is_that_of_the_definition_and_no_part_is_larger_than_the_limit(loops, monkeypatch):
    monkeypatch.setattr(magnitude_tables, "SORTED_AT_ONCE", 50_000)
    sizes = []
    inner = Loops._sorted
    monkeypatch.setattr(Loops, "_sorted", lambda *given: sizes.append(given[-1]) or inner(*given))
    assert_same(loops, torch.randn(400_000, generator=torch.Generator().manual_seed(0)).abs())
    assert sum(sizes) == 400_000
    assert max(sizes) <= 50_000


def test_digits_beyond_the_limit_are_counted_as_by_the_definition(loops, monkeypatch):
    monkeypatch.setattr(magnitude_tables, "SORTED_AT_ONCE", 50_000)
    generator = torch.Generator().manual_seed(0)
    alike = 1 + torch.rand(150_000, generator=generator) / 256
    sizes = []
    inner = Loops._sorted
    monkeypatch.setattr(Loops, "_sorted", lambda *given: sizes.append(given[-1]) or inner(*given))
    assert_same(loops, torch.cat([torch.zeros(150_000), alike, torch.randn(100_000, generator=generator).abs()]))
    assert max(sizes) <= 50_000


@pytest.mark.parametrize("worst", [float("inf"), float("nan")])
@pytest.mark.parametrize("count", [100, 20_000])
def test_values_that_are_not_finite_are_left_to_the_definition(loops, count, worst):
    magnitudes = torch.linspace(0, 1, count)
    magnitudes[7] = worst
    assert loops.table(lambda: [magnitudes], count, Desk()) is None
    found, expected = (build(lambda: [magnitudes], count) for build in (fast_table, make_table))
    assert found.ranks.tolist() == expected.ranks.tolist()
    assert found.values.tobytes() == expected.values.tobytes()


def test_without_a_compiler_the_tables_are_the_same_and_it_is_said_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    this_machines_loops.cache_clear()
    magnitudes = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).abs()
    with caplog.at_level(logging.WARNING):
        tables = [fast_table(lambda: [magnitudes], 20_000) for _ in range(2)]
    this_machines_loops.cache_clear()
    expected = make_table(lambda: [magnitudes], 20_000)
    assert all(table.values.tobytes() == expected.values.tobytes() for table in tables)
    assert ["cannot be compiled here" in record.message for record in caplog.records] == [True]


def test_a_library_is_compiled_once_and_leaves_nothing_else(tmp_path, monkeypatch):
    path = compiled_library(SOURCE, tmp_path)
    monkeypatch.setattr(compiled_loops, "_compiler", lambda: pytest.fail("compiled again"))
    assert compiled_library(SOURCE, tmp_path) == path
    assert list(tmp_path.iterdir()) == [path]
