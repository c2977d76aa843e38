"""Compiled sums of weighted task vectors, and slopes of their weights: those of the operations one by one."""

from __future__ import annotations

import logging

import pytest
import torch

from evomerge.elementwise.column_arithmetic import write_column_arithmetic
from evomerge.elementwise.column_linear import write_column_linear
from evomerge.merging import RuleTensors
from evomerge.native import weighted_vectors
from evomerge.native.weighted_vectors import factor_slopes, write_weighted_sum

# Shape of a tensor, and of a factor: one for all, per column, per row, per element of a vector. Rows and columns are
# more than fit a block and no multiples of anything.
SPREADS = [
    ((301, 611), ()),
    ((301, 611), (1, 1)),
    ((301, 611), (611,)),
    ((301, 611), (301, 1)),
    ((7, 3, 40), (7, 1, 1)),
    ((7, 3, 40), (40,)),
    ((2000,), (2000,)),
    ((5,), ()),
    ((), ()),
]
DTYPES = {
    "wide": (torch.float32,) * 4,
    "narrow": (torch.bfloat16,) * 4,
    "mixed": (torch.float32, torch.bfloat16, torch.float32, torch.bfloat16),
}


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def models(shape, dtypes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for dtype in dtypes]


def factors_of(shape):
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))


def by_operations(base, sources, factors, target, *, vectors):
    tensors = RuleTensors(
        names=("tensor",),
        base={"tensor": base} if vectors else None,
        sources=[{"tensor": source} for source in sources],
        parameters={"weight": (1.0,) * 3, "coefficients": [{"tensor": factor} for factor in factors]},
        options={} if vectors else {"phi": "identity"},
    )
    (write_column_arithmetic if vectors else write_column_linear)(tensors, {"tensor": target})
    return target


@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtypes", list(DTYPES))
@pytest.mark.parametrize(("full", "shape"), SPREADS)
def test_sums_have_the_bits_of_the_operations(full, shape, dtypes, out):
    (base, *sources), factors = models(full, DTYPES[dtypes]), factors_of(shape)
    for vectors in (True, False):
        found = torch.empty(full, dtype=out)
        assert write_weighted_sum(found, base if vectors else None, sources, factors)
        expected = by_operations(base, sources, factors, torch.empty(full, dtype=out), vectors=vectors)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16])
def test_values_that_are_not_finite_are_seen_in_the_sum(out):
    base, *sources = models((600,), DTYPES["wide"])
    sources[0][3], sources[1][5], base[7] = float("nan"), float("inf"), -float("inf")
    found, expected = torch.empty(600, dtype=out), torch.empty(600, dtype=out)
    assert write_weighted_sum(found, base, sources, factors_of(()))
    by_operations(base, sources, factors_of(()), expected, vectors=True)
    assert torch.isfinite(found).logical_not().nonzero().squeeze(1).tolist() == [3, 5, 7]
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtypes", list(DTYPES))
@pytest.mark.parametrize(("full", "shape"), SPREADS)
def test_slopes_are_sums_of_products(full, shape, dtypes):
    base, *sources = models(full, DTYPES[dtypes])
    gradient = torch.randn(full, generator=torch.Generator().manual_seed(2)).to(DTYPES[dtypes][-1])
    for origin in (base, None):
        vectors = [source.double() - (0 if origin is None else origin.double()) for source in sources]
        spread = (1,) * (len(full) - len(shape)) + shape
        products = [gradient.double() * vector for vector in vectors]
        expected = torch.stack([product.sum_to_size(spread).reshape(shape) for product in products])
        lengths = torch.stack([product.square().sum_to_size(spread).reshape(shape).sqrt() for product in products])
        found = factor_slopes(gradient, origin, sources, shape)
        assert found.dtype == torch.float64
        assert found.shape == (3, *shape)
        assert bool(((found - expected).abs() <= 1e-5 * lengths).all())


@pytest.mark.parametrize("shape", [(), (611,), (301, 1)])
def test_neither_sums_nor_slopes_depend_on_the_number_of_threads(monkeypatch, threads, shape):
    monkeypatch.setattr(weighted_vectors, "SHARED", 1 << 10)
    gradient, base, *sources = models((301, 611), (torch.float32,) * 5)
    sums, slopes = [], []
    for count in (1, 3):
        threads(count)
        sums.append(torch.empty(301, 611))
        assert write_weighted_sum(sums[-1], base, sources, factors_of(shape))
        slopes.append(factor_slopes(gradient, base, sources, shape))
    assert torch.equal(*sums)
    assert torch.equal(*slopes)


@pytest.mark.parametrize(
    "change",
    [
        lambda base: base.double(),
        lambda base: base.half(),
        lambda base: base.T.contiguous().T,
        lambda base: base.to("meta"),
    ],
    ids=["float64", "float16", "not contiguous", "another device"],
)
def test_other_tensors_are_left_to_the_operations(change):
    base, *sources = models((30, 40), DTYPES["wide"])
    target = torch.full((30, 40), 7.0)
    assert not write_weighted_sum(target, change(base), sources, factors_of(()))
    assert bool((target == 7).all())
    assert factor_slopes(target, change(base), sources, ()) is None


def test_factors_that_vary_otherwise_are_left_to_the_operations():
    gradient, base, *sources = models((6, 5, 4), (torch.float32,) * 5)
    assert not write_weighted_sum(gradient, base, sources, factors_of((5, 4)))
    assert factor_slopes(gradient, base, sources, (5, 4)) is None
    assert factor_slopes(gradient[:0], base[:0], [source[:0] for source in sources], ()) is None


def test_without_a_compiler_it_is_said_once_and_the_operations_serve(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    weighted_vectors._compiled.cache_clear()
    gradient, base, *sources = models((30, 40), (torch.float32,) * 5)
    with caplog.at_level(logging.WARNING):
        assert factor_slopes(gradient, base, sources, ()) is None
        assert not write_weighted_sum(gradient, base, sources, factors_of(()))
    weighted_vectors._compiled.cache_clear()
    assert ["cannot be compiled here" in record.message for record in caplog.records] == [True]
