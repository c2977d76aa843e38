"""The interval of a difference is the test of the difference, inverted: both say the same of 0."""

import numpy as np
import pytest

from evomerge.verdict.equivalence import shifted_score
from evomerge.verdict.score_interval import interval
from evomerge.verdict.sign_flip import Discordance, difference, sign_flip

ALPHA = 0.05
ONE_ITEM = [
    Discordance(stake=0.5, items=1, wins=0, losses=0),
    Discordance(stake=0.0005, items=1000, wins=12, losses=0),
]


def of(tasks):
    return interval(tasks, sign_flip(tasks, seed=0)[1])


def table(generator, sizes, discordant, edges):
    """Wins and losses of each task, whose objective is the mean over tasks."""
    shares = ([(discordant + edge) / 2, (discordant - edge) / 2, 1 - discordant] for edge in edges)
    return [
        Discordance(stake=1 / len(sizes) / items, items=items, wins=int(wins), losses=int(losses))
        for items, chances in zip(sizes, shares, strict=True)
        for wins, losses, _ in [generator.multinomial(items, chances)]
    ]


def test_a_task_of_one_item_has_an_interval_that_says_what_its_p_value_says():
    _, p = sign_flip(ONE_ITEM, seed=0)
    low, high = of(ONE_ITEM)
    assert p < 0.001
    assert 0 < low < difference(ONE_ITEM) < high < 0.5  # of the item nobody knows how it varies


def test_the_interval_holds_what_the_score_test_does_not_reject():
    (low, high) = of(tasks := [Discordance(stake=0.01, items=100, wins=20, losses=8)])
    assert shifted_score(tasks, low) == pytest.approx(1.959964, abs=1e-4)
    assert shifted_score(tasks, high) == pytest.approx(-1.959964, abs=1e-4)


def test_the_interval_has_a_width_where_nothing_differs_and_stays_where_differences_can_be():
    low, high = of([Discordance(stake=0.01, items=100, wins=0, losses=0)])
    assert low == pytest.approx(-high)
    assert high == pytest.approx(3.8415 / 103.8415, abs=1e-4)  # of no event in 100 by the score
    low, high = of([Discordance(stake=1.0, items=1, wins=1, losses=0)])
    assert low < 0
    assert high == 1.0
    assert of([Discordance(stake=0.1, items=10, wins=10, losses=0)])[1] == pytest.approx(1.0)


def test_exchanged_models_have_the_interval_mirrored():
    tasks = [Discordance(stake=0.02, items=25, wins=9, losses=1), Discordance(stake=0.01, items=50, wins=5, losses=2)]
    mirrored = [Discordance(stake=each.stake, items=each.items, wins=each.losses, losses=each.wins) for each in tasks]
    low, high = of(tasks)
    assert of(mirrored) == (pytest.approx(-high), pytest.approx(-low))


@pytest.mark.parametrize("sizes", [(12,), (60,), (500,), (8, 8, 8), (1, 400), (7, 11, 13), (30, 300)])
def test_the_interval_excludes_0_exactly_where_the_p_value_is_below_its_level(sizes):
    generator, excluded = np.random.Generator(np.random.Philox(3)), 0
    for _ in range(150):
        discordant = generator.uniform(0.02, 0.6)
        edges = generator.uniform(-discordant, discordant, len(sizes))
        tasks = table(generator, sizes, discordant, edges)
        _, p = sign_flip(tasks, seed=0)
        low, high = interval(tasks, p)
        assert (low > 0 or high < 0) == (p < ALPHA)
        assert low <= difference(tasks) <= high
        excluded += p < ALPHA
    assert 0 < excluded < 150


@pytest.mark.parametrize("sizes", [(30,), (200,), (25,) * 4, (20,) * 10, (30, 300)])
@pytest.mark.parametrize(("discordant", "true"), [(0.05, 0.03), (0.2, 0.0), (0.2, 0.1), (0.4, 0.05)])
def test_the_interval_covers_the_truth_in_at_least_93_of_100_cases(sizes, discordant, true):
    generator = np.random.Generator(np.random.Philox(5))
    tables = [table(generator, sizes, discordant, (true,) * len(sizes)) for _ in range(1000)]
    covered = sum(low <= true <= high for low, high in map(of, tables))
    assert covered >= 0.93 * len(tables)


def test_the_interval_covers_the_mean_of_tasks_that_differ():
    generator = np.random.Generator(np.random.Philox(6))
    tables = [table(generator, (60, 300), 0.4, (0.3, -0.1)) for _ in range(1000)]
    assert sum(low <= 0.1 <= high for low, high in map(of, tables)) >= 0.93 * len(tables)
