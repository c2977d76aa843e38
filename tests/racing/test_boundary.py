"""The boundary: what the literature tabulates, what a simulation spends, and what cannot be asked."""

import itertools

import numpy as np
import pytest
from scipy.special import ndtri

from evomerge.errors import InvalidInput
from evomerge.racing import boundary
from evomerge.racing.boundary import SPENDING, obrien_fleming, pocock

FIFTHS = (0.2, 0.4, 0.6, 0.8, 1.0)


def boundaries(fractions, alpha, spending="pocock"):
    return [boundary(fractions[:count], alpha, spending) for count in range(1, len(fractions) + 1)]


@pytest.mark.parametrize(
    ("spending", "tabulated"),
    [
        # Five equal looks at a one-sided 0.025, as the programs of Reboussin et al. (2000) print them
        ("pocock", [2.4380, 2.4268, 2.4101, 2.3966, 2.3859]),
        ("obrien_fleming", [4.8769, 3.3569, 2.6803, 2.2898, 2.0310]),
    ],
)
def test_five_looks_have_the_boundaries_of_lan_and_demets(spending, tabulated):
    assert boundaries(FIFTHS, 0.025, spending) == pytest.approx(tabulated, abs=2e-4)


@pytest.mark.parametrize(("looks", "constant"), [(2, 2.178), (5, 2.413), (10, 2.555)])
def test_spending_what_pococks_constant_spends_gives_that_constant(monkeypatch, looks, constant):
    """Pocock (1977), one-sided 0.025: the same boundary at each of so many equal looks. What it spends is simulated
    with antithetic pairs, and a boundary that is computed from that must come out constant again."""
    generator = np.random.Generator(np.random.Philox(7))
    steps = generator.standard_normal((200_000, looks))
    steps = np.concatenate([steps, -steps])
    statistics = steps.cumsum(axis=1) / np.sqrt(np.arange(1, looks + 1))
    spent = (np.maximum.accumulate(statistics, axis=1) >= constant).mean(axis=0)
    assert spent[-1] == pytest.approx(0.025, abs=0.001)
    monkeypatch.setitem(
        SPENDING, f"simulated {looks}", lambda fraction, alpha: float(spent[round(fraction * looks) - 1])
    )
    fractions = tuple((np.arange(looks) + 1) / looks)
    assert boundaries(fractions, 0.025, f"simulated {looks}") == pytest.approx([constant] * looks, abs=0.05)


@pytest.mark.parametrize("spending", list(SPENDING))
def test_uneven_looks_spend_what_they_may(spending):
    fractions = (0.05, 0.07, 0.3, 0.305, 0.5, 0.9)
    bounds = boundaries(fractions, 0.02, spending)
    generator = np.random.Generator(np.random.Philox(3))
    steps = generator.standard_normal((400_000, len(fractions))) * np.sqrt(np.diff((0.0, *fractions)))
    crossed = np.maximum.accumulate(steps.cumsum(axis=1) / np.sqrt(fractions) >= bounds, axis=1).mean(axis=0)
    expected = [SPENDING[spending](fraction, 0.02) for fraction in fractions]
    assert crossed == pytest.approx(expected, abs=4 * (0.02 / 400_000) ** 0.5)


def test_spending_begins_with_nothing_grows_and_ends_with_alpha():
    grid = np.linspace(1e-6, 1, 200)
    for function in (pocock, obrien_fleming):
        spent = [function(fraction, 0.02) for fraction in grid]
        assert spent[0] < 1e-6
        assert all(later >= sooner for sooner, later in itertools.pairwise(spent))
        assert spent[-1] == pytest.approx(0.02)
    assert pocock(0.5, 0.02) == pytest.approx(0.01240229)  # 0.02 · ln(1 + (e − 1) / 2)


def test_one_look_at_everything_is_an_ordinary_test():
    assert boundary([1.0], 0.02) == pytest.approx(-ndtri(0.02))


def test_a_look_at_almost_nothing_new_is_not_counted_and_its_error_rate_is_kept():
    assert boundary([0.5, 0.5], 0.02) == np.inf
    assert boundary([0.5, 0.5005], 0.02) == np.inf
    assert boundary([0.5, 0.5, 0.5005, 0.7], 0.02) == pytest.approx(boundary([0.5, 0.7], 0.02))


def test_hundreds_of_looks_are_no_trouble():
    assert 2 < boundary(np.geomspace(0.1, 0.99, 250), 0.02) < 4


@pytest.mark.parametrize("fractions", [[], [0.0], [0.5, 0.4], [0.5, 1.1], [float("nan")]])
def test_fractions_that_are_none_are_refused(fractions):
    with pytest.raises(InvalidInput, match="fractions of the looks"):
        boundary(fractions, 0.02)


def test_other_arguments_that_mean_nothing_are_refused():
    with pytest.raises(InvalidInput, match="alpha must be between"):
        boundary([0.5], 0.7)
    with pytest.raises(InvalidInput, match="did you mean 'pocock'"):
        boundary([0.5], 0.02, "pocok")
