"""Two one-sided tests within a margin: hand-computed cases, the likelihood of several tasks, and sizes."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import ndtr
from scipy.stats import binom

from evomerge.verdict.equivalence import equivalence_p, shifted_score
from evomerge.verdict.sign_flip import Discordance


def one(wins, losses, items):
    return [Discordance(stake=1 / items, items=items, wins=wins, losses=losses)]


def test_where_nothing_differs_the_likeliest_shares_are_a_win_for_every_part_of_the_margin():
    """With a shift of m, wins have the share m and losses 0: z = −m / sqrt(m (1 − m) / n)."""
    assert shifted_score(one(0, 0, 100), 0.04) == pytest.approx(-0.04 / math.sqrt(0.04 * 0.96 / 100))
    assert equivalence_p(one(0, 0, 100), 0.04) == pytest.approx(ndtr(-2.0412), rel=1e-3)


def test_without_a_shift_it_is_mcnemars_score():
    assert shifted_score(one(30, 12, 200), 0.0) == pytest.approx((30 - 12) / math.sqrt(30 + 12))


def test_the_side_that_is_nearer_to_the_margin_decides():
    assert equivalence_p(one(8, 2, 400), 0.03) == pytest.approx(equivalence_p(one(2, 8, 400), 0.03))
    assert equivalence_p(one(8, 2, 400), 0.03) > equivalence_p(one(5, 5, 400), 0.03)
    assert equivalence_p(one(30, 2, 400), 0.03) > 0.5


def test_a_margin_that_no_difference_can_reach_is_certain():
    assert equivalence_p(one(3, 0, 4), 1.0) == 0.0


def test_tasks_whose_items_are_worth_the_same_are_one_task():
    tasks = [
        Discordance(stake=0.001, items=500, wins=9, losses=6),
        Discordance(stake=0.001, items=500, wins=5, losses=8),
    ]
    assert equivalence_p(tasks, 0.02) == equivalence_p(one(14, 14, 1000), 0.02)


@pytest.mark.parametrize("shift", [0.05, -0.03])
def test_several_tasks_have_the_variance_of_their_likeliest_shares(shift):
    tasks = [
        Discordance(stake=0.5 / 60, items=60, wins=9, losses=4),
        Discordance(stake=0.3 / 200, items=200, wins=10, losses=25),
        Discordance(stake=0.2 / 90, items=90, wins=3, losses=2),
    ]
    worth = np.array([0.5, 0.3, 0.2])

    def unlikely(shares):
        wins, losses = shares[:3], shares[3:]
        if min(*wins, *losses, *(1 - wins - losses)) <= 0:
            return 1e9
        return -sum(
            task.wins * math.log(won)
            + task.losses * math.log(lost)
            + (task.items - task.count) * math.log(1 - won - lost)
            for task, won, lost in zip(tasks, wins, losses, strict=True)
        )

    found = minimize(
        unlikely,
        np.full(6, 0.1) + np.repeat([shift, 0.0], 3) * (shift > 0) - np.repeat([0.0, shift], 3) * (shift < 0),
        method="SLSQP",
        constraints={"type": "eq", "fun": lambda shares: worth @ (shares[:3] - shares[3:]) - shift},
        options={"ftol": 1e-13, "maxiter": 1000},
    )
    wins, losses = found.x[:3], found.x[3:]
    sizes = np.array([task.items for task in tasks])
    variance = (worth**2 * (wins + losses - (wins - losses) ** 2) / sizes).sum()
    observed = sum(task.stake * (task.wins - task.losses) for task in tasks)
    assert shifted_score(tasks, shift) == pytest.approx((observed - shift) / math.sqrt(variance), rel=1e-3)


@pytest.mark.parametrize(("items", "margin"), [(50, 0.1), (250, 0.03), (1000, 0.01)])
@pytest.mark.parametrize("times", [1.0, 2.0, 10.0])
def test_its_size_is_right_or_too_small_at_the_margin(items, margin, times):
    """Exact: summed over wins and losses, at a true difference of the margin; `times` it is the share that differs."""
    discordant = min(1.0, times * margin)
    for level in (0.025, 0.005, 0.001):
        size = 0.0
        for count in range(items + 1):
            chance = binom.pmf(count, items, discordant)
            if chance < 1e-9:
                continue
            wins = np.arange(count + 1)
            p_values = np.array([ndtr(shifted_score(one(won, count - won, items), margin)) for won in wins])
            size += chance * binom.pmf(wins[p_values <= level], count, (1 + margin / discordant) / 2).sum()
        assert size <= 1.06 * level


@pytest.mark.parametrize("sizes", [(60, 300), (40,) * 5])
def test_with_several_tasks_its_size_is_right_by_simulation(sizes):
    generator = np.random.Generator(np.random.Philox(11))
    true, margin, runs = np.linspace(0.02, 0.06, len(sizes)), 0.04, 4000
    wins, losses = 0.08 + true, np.full(len(sizes), 0.08)
    drawn = [
        generator.multinomial(size, [won, lost, 1 - won - lost], runs)
        for size, won, lost in zip(sizes, wins, losses, strict=True)
    ]
    false = 0
    for run in range(runs):
        tasks = [
            Discordance(stake=1 / len(sizes) / size, items=size, wins=int(rows[run][0]), losses=int(rows[run][1]))
            for size, rows in zip(sizes, drawn, strict=True)
        ]
        false += ndtr(shifted_score(tasks, margin)) <= 0.025
    assert 0.5 * 0.025 * runs < false <= 1.2 * 0.025 * runs
