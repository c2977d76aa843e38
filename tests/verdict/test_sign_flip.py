"""Exact tests on discordant items."""

import itertools
import math

import pytest
from scipy.stats import binomtest

from evomerge.verdict import mcnemar, sign_flip
from evomerge.verdict.sign_flip import Discordance, difference


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
    assert 0 < sign_flip.sign_flip(tasks, seed=1)[1] < 1 / (1 + sign_flip.DRAWS)
    even = [Discordance(stake=1 / items, items=items, wins=items // 8, losses=items // 9) for items in (90, 100, 110)]
    assert sign_flip.sign_flip(even, seed=1) == sign_flip.sign_flip(even, seed=1) != sign_flip.sign_flip(even, seed=2)


def test_coins_that_no_draw_shows_have_a_p_value_between_the_exact_one_and_that_of_the_draws(monkeypatch):
    tasks = [Discordance(stake=1 / items, items=items, wins=items // 3, losses=0) for items in (90, 100, 110)]
    _, exact = sign_flip.sign_flip(tasks, seed=0)
    monkeypatch.setattr(sign_flip, "ENUMERATED", 1)
    _, sampled = sign_flip.sign_flip(tasks, seed=0)
    assert 0 < exact <= sampled < 1e-15
