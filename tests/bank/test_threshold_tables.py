"""Threshold tables: right to one element in 10⁵, without sorting again, in little memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.passes import magnitude_tables
from evomerge.passes.magnitude_tables import make_table
from evomerge.passes.threshold_tables import ThresholdTables


def worst_error(magnitudes, ranks=None):
    """The largest number of elements that a threshold keeps or drops wrongly, over the given ranks or all."""
    table = make_table(lambda: magnitudes.split(50_000), len(magnitudes))
    ordered = np.sort(magnitudes.numpy())
    ranks = np.arange(len(ordered)) if ranks is None else ranks
    found = table.at(ranks)
    smaller = np.searchsorted(ordered, found, "left")
    return int(np.abs(smaller - np.searchsorted(ordered, ordered[ranks], "left")).max())


def differences(count, dtype, seed=0):
    """|source - base| of weights in a 16-bit type, of which many are equal, or in float32."""
    generator = torch.Generator().manual_seed(seed)
    base = (torch.randn(count, generator=generator) * 0.02).to(dtype)
    source = (base.float() + torch.randn(count, generator=generator) * 0.002).to(dtype)
    return (source.float() - base.float()).abs()


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(min_value=0, width=32, allow_infinity=False), min_size=1, max_size=60))
def test_every_threshold_of_a_small_scope_keeps_exactly_the_right_elements(values):
    assert worst_error(torch.tensor(values, dtype=torch.float32)) == 0


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(min_value=0, width=32, allow_infinity=False), min_size=1, max_size=60))
def test_one_rank_alone_gives_the_bits_of_many_at_once(values):
    few = make_table(lambda: [torch.tensor(values, dtype=torch.float32)], len(values))
    thinned = make_table(lambda: [differences(300_000, torch.bfloat16, seed=len(values))], 300_000)
    for table, ranks in ((few, np.arange(len(values))), (thinned, np.arange(0, 300_000, 3_001))):
        assert np.array([table.at_rank(int(rank)) for rank in ranks], np.float32).tobytes() == table.at(ranks).tobytes()


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_a_small_scope_knows_every_run_of_equal_magnitudes(values):
    table = make_table(lambda: [torch.tensor(values, dtype=torch.float32)], len(values))
    ordered = sorted(values)
    for rank, value in enumerate(ordered):
        first = ordered.index(value)
        assert table.run(rank) == (first, first + values.count(value) - 1)


def test_a_large_scope_knows_the_runs_that_matter():
    magnitudes = differences(700_001, torch.bfloat16)
    table = make_table(lambda: [magnitudes], len(magnitudes))
    ordered = np.sort(magnitudes.numpy())
    for rank in range(0, len(ordered), 7_001):
        first, last = (int(np.searchsorted(ordered, ordered[rank], side)) for side in ("left", "right"))
        assert table.run(rank) in ((first, last - 1), (rank, rank))
        assert table.run(rank) != (rank, rank) or last - first <= 7  # a hundred-thousandth of the elements


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [1, 2, 768, 65_536, 100_000, 700_001])
def test_a_threshold_is_right_to_one_element_in_a_hundred_thousand(count, dtype):
    assert worst_error(differences(count, dtype)) <= count / 100_000


def test_weights_that_a_source_left_alone_are_no_trouble():
    generator = torch.Generator().manual_seed(0)
    some = torch.cat([torch.zeros(600_000), torch.randn(200_000, generator=generator).abs()])
    assert worst_error(some) <= 8
    assert worst_error(torch.zeros(300_000)) == 0


def test_heavy_tails_are_no_trouble():
    generator = torch.Generator().manual_seed(0)
    assert worst_error(torch.randn(400_000, generator=generator).exp() ** 6) <= 4


def test_a_large_scope_is_sorted_in_parts_of_bounded_size(monkeypatch):
    magnitudes = differences(400_000, torch.bfloat16)
    whole = make_table(lambda: [magnitudes], 400_000)
    sizes = []
    inner = magnitude_tables._sorted
    monkeypatch.setattr(magnitude_tables, "SORTED_AT_ONCE", 50_000)
    monkeypatch.setattr(magnitude_tables, "_sorted", lambda pieces, count: sizes.append(count) or inner(pieces, count))
    parts = make_table(lambda: magnitudes.split(33_333), 400_000)
    assert max(sizes) <= 50_000
    assert sum(sizes) == 400_000
    ranks = np.arange(400_000)
    ordered = np.sort(magnitudes.numpy())
    for table in (whole, parts):
        smaller = np.searchsorted(ordered, table.at(ranks), "left")
        assert np.abs(smaller - np.searchsorted(ordered, ordered[ranks], "left")).max() <= 4


def test_more_magnitudes_with_the_same_upper_bits_than_may_be_sorted_together_are_counted(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    alike = 1 + torch.rand(150_000, generator=generator) / 256
    magnitudes = torch.cat([torch.zeros(150_000), alike, torch.randn(100_000, generator=generator).abs()])
    sizes = []
    inner = magnitude_tables._sorted
    monkeypatch.setattr(magnitude_tables, "SORTED_AT_ONCE", 50_000)
    monkeypatch.setattr(magnitude_tables, "_sorted", lambda pieces, count: sizes.append(count) or inner(pieces, count))
    table = make_table(lambda: magnitudes.split(33_333), len(magnitudes))
    assert max(sizes) <= 50_000
    assert sum(sizes) <= 100_000
    ordered = np.sort(magnitudes.numpy())
    smaller = np.searchsorted(ordered, table.at(np.arange(len(ordered))), "left")
    assert np.abs(smaller - np.searchsorted(ordered, ordered, "left")).max() <= 4


def test_the_largest_scopes_are_sorted_in_so_many_parts(monkeypatch):
    monkeypatch.setattr(magnitude_tables, "SORTED_AT_ONCE", 1000)
    assert magnitude_tables.sorted_together(900) == 900
    assert magnitude_tables.sorted_together(10_000) == 1000
    assert (
        magnitude_tables.sorted_together(1_600_000) == 100_000
    )  # a pass over the scope for each 1,000 would take for ever


def test_the_tables_of_large_scopes_take_less_than_a_hundredth_of_the_sources():
    # Base and four sources of 8 M elements in bfloat16; the thresholds of one source are a quarter of the tables.
    table = make_table(lambda: differences(8_000_000, torch.bfloat16).split(1 << 20), 8_000_000)
    assert 4 * table.nbytes < 0.01 * 5 * 2 * 8_000_000


def test_scopes_are_several_tensors_and_tables_are_made_once():
    base = {"a": torch.zeros(3), "b": torch.zeros(2, 2)}
    source = {"a": torch.tensor([1.0, -5.0, 3.0]), "b": torch.tensor([[-2.0, 4.0], [7.0, 6.0]])}
    tables = ThresholdTables(base, [source])
    assert [tables.kth_magnitude(0, ("a", "b"), k) for k in range(1, 8)] == [1, 2, 3, 4, 5, 6, 7]
    assert tables.kth_magnitude(0, ("a",), 2) == 3
    held = tables.nbytes
    source["a"].fill_(100.0)
    assert tables.kth_magnitude(0, ("a",), 2) == 3
    assert tables.nbytes == held


def test_short_scopes_hold_every_magnitude_and_share_their_ranks():
    scopes = [torch.randn(10_000, generator=torch.Generator().manual_seed(seed)).abs() for seed in (0, 1)]
    tables = [make_table(lambda given=scope: [given], len(scope)) for scope in scopes]
    for table, scope in zip(tables, scopes, strict=True):
        assert np.abs(table.values).tolist() == scope.sort().values.tolist()
        assert table.ranks is tables[0].ranks
    equal = make_table(lambda: [torch.zeros(10_000)], 10_000)
    assert len(equal.ranks) == 2
