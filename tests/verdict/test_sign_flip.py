"""Exact tests on discordant items, and the interval of the difference."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binomtest

from evomerge.verdict import mcnemar, sign_flip
from evomerge.verdict.sign_flip import Discordance, difference, interval


def brute_force(tasks):
    """Every coin of every discordant item, one by one."""
    stakes = [task.stake for task in tasks for _ in range(task.count)]
    observed = abs(difference(tasks))
    sums = [
        abs(math.fsum(sign * stake for sign, stake in zip(signs, stakes, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(stakes))
    ]
    return sum(each >= observed - 1e-12 for each in sums) / len(sums)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (0, 6), (5, 5), (37, 12), (125, 75), (900, 1100)])
def test_mcnemar_is_the_binomial_test(wins, losses):
    expected = binomtest(wins, wins + losses, 0.5).pvalue if wins + losses else 1.0
    assert mcnemar.conditional(wins, losses) == pytest.approx(expected, rel=1e-9)


def test_tasks_whose_items_are_worth_the_same_are_one_mcnemar_test():
    tasks = [Discordance(stake=0.01, items=50, wins=8, losses=2), Discordance(stake=0.01, items=50, wins=9, losses=4)]
    assert sign_flip.sign_flip(tasks, seed=0) == ("McNemar", mcnemar.unconditional(17, 6, 100))


@pytest.mark.parametrize(
    "tasks",
    [
        [Discordance(stake=0.02, items=25, wins=4, losses=1), Discordance(stake=0.01, items=50, wins=5, losses=2)],
        [Discordance(stake=0.03, items=25, wins=0, losses=3), Discordance(stake=0.01, items=50, wins=5, losses=2)],
        [
            Discordance(stake=1 / 7, items=7, wins=3, losses=1),
            Discordance(stake=1 / 11, items=11, wins=2, losses=2),
            Discordance(stake=1 / 13, items=13, wins=4, losses=0),
        ],
        [Discordance(stake=1 / 7, items=7, wins=0, losses=0), Discordance(stake=1 / 11, items=11, wins=5, losses=1)],
        [Discordance(stake=1 / 7, items=7, wins=1, losses=1), Discordance(stake=1 / 11, items=11, wins=1, losses=1)],
    ],
)
def test_items_of_unequal_worth_are_all_combinations_of_coins(tasks):
    test, p = sign_flip.sign_flip(tasks, seed=0)
    assert test == "sign flip"
    assert p == pytest.approx(brute_force(tasks), rel=1e-9)


def test_many_combinations_are_sampled_to_nearly_the_same_p(monkeypatch):
    tasks = [Discordance(stake=1 / items, items=items, wins=items // 5, losses=items // 8) for items in (90, 100, 110)]
    _, exact = sign_flip.sign_flip(tasks, seed=0)
    monkeypatch.setattr(sign_flip, "ENUMERATED", 1)
    _, sampled = sign_flip.sign_flip(tasks, seed=0)
    assert 0.001 < exact < 0.1
    assert sampled == pytest.approx(exact, rel=0.05)
    assert sampled != exact


def test_sampled_coins_are_never_all_against_and_the_same_for_the_same_seed(monkeypatch):
    monkeypatch.setattr(sign_flip, "ENUMERATED", 1)
    tasks = [Discordance(stake=1 / items, items=items, wins=items // 2, losses=0) for items in (90, 100, 110)]
    assert sign_flip.sign_flip(tasks, seed=1)[1] == 1 / (1 + sign_flip.DRAWS)
    even = [Discordance(stake=1 / items, items=items, wins=items // 8, losses=items // 9) for items in (90, 100, 110)]
    assert sign_flip.sign_flip(even, seed=1) == sign_flip.sign_flip(even, seed=1) != sign_flip.sign_flip(even, seed=2)


def test_the_interval_is_that_of_bonett_and_price():
    """Against their formula for one table: 20 and 8 discordant of 100 pairs."""
    wins, losses = 21 / 102, 9 / 102
    half = 1.959963985 * math.sqrt((wins + losses - (wins - losses) ** 2) / 102)
    low, high = interval([Discordance(stake=0.01, items=100, wins=20, losses=8)])
    assert low == pytest.approx(wins - losses - half)
    assert high == pytest.approx(wins - losses + half)


def test_the_interval_has_a_width_where_nothing_differs_and_stays_where_differences_can_be():
    low, high = interval([Discordance(stake=0.01, items=100, wins=0, losses=0)])
    assert low == pytest.approx(-high)
    assert 0.02 < high < 0.03
    assert interval([Discordance(stake=1.0, items=1, wins=1, losses=0)]) == (pytest.approx(-0.733, abs=1e-3), 1.0)


@pytest.mark.parametrize("sizes", [(30,), (200,), (25,) * 4, (20,) * 10, (30, 300)])
@pytest.mark.parametrize(("discordant", "true"), [(0.05, 0.03), (0.2, 0.0), (0.2, 0.1), (0.4, 0.05)])
def test_the_interval_covers_the_truth_in_at_least_93_of_100_cases(sizes, discordant, true):
    generator = np.random.Generator(np.random.Philox(5))
    wins, losses = (discordant + true) / 2, (discordant - true) / 2
    chances = [wins, losses, 1 - discordant]
    covered = 0
    for _ in range(1000):
        tasks = [
            Discordance(stake=1 / len(sizes) / items, items=items, wins=int(up), losses=int(down))
            for items, (up, down, _) in ((items, generator.multinomial(items, chances)) for items in sizes)
        ]
        low, high = interval(tasks)
        covered += low <= true <= high
    assert covered >= 930
