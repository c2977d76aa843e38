"""McNemar's unconditional test: a small case worked by hand, its size, and what it gains."""

import numpy as np
import pytest
from scipy.stats import binom

from evomerge.verdict.mcnemar import conditional, unconditional


def test_two_wins_in_three_items_are_the_example_worked_by_hand():
    """Of two discordant items, p = 1/2; of three on one side, 1/4. So many come with a chance of 3 s² (1 − s) and s³,
    and 1.5 s² − 1.25 s³ is largest at s = 0.8."""
    assert conditional(2, 0) == 0.5
    assert unconditional(2, 0, 3) == pytest.approx(0.32, abs=1e-4)
    assert unconditional(0, 2, 3) == unconditional(2, 0, 3)


def test_where_every_item_differs_or_none_it_is_the_conditional_test():
    assert unconditional(0, 0, 9) == unconditional(4, 4, 9) == 1.0
    assert unconditional(2, 0, 2) == pytest.approx(0.5, abs=2e-6)


@pytest.mark.parametrize("items", [6, 15, 40])
def test_its_size_is_at_most_the_level_whatever_the_share_of_discordant_items(items):
    """Exact: summed over all numbers of wins and losses."""
    discordant = np.arange(items + 1)
    p_values = [[unconditional(wins, count - wins, items) for wins in range(count + 1)] for count in discordant]
    for level in (0.05, 0.01, 0.002):
        rejected = [
            binom.pmf(np.flatnonzero(np.array(row) <= level), count, 0.5).sum()
            for count, row in zip(discordant, p_values, strict=True)
        ]
        sizes = [binom.pmf(discordant, items, share) @ rejected for share in np.linspace(0.01, 1.0, 100)]
        assert max(sizes) <= level


@pytest.mark.parametrize(("wins", "losses", "items"), [(60, 35, 1000), (110, 75, 1000), (280, 220, 1000), (15, 4, 250)])
def test_it_is_never_less_powerful_than_the_conditional_test(wins, losses, items):
    assert 0.6 < unconditional(wins, losses, items) / conditional(wins, losses) < 0.91
