"""Shares of the level that looks spend."""

import pytest

from evomerge.verdict.looks import share


def test_the_first_look_spends_most_and_all_that_can_ever_be_made_spend_the_whole_level():
    assert [share(look) for look in (1, 2, 3, 4)] == pytest.approx([0.9, 0.05, 0.1 / 6, 0.1 / 12])
    assert sum(map(share, range(1, 100_001))) == pytest.approx(1.0, abs=2e-6)
    assert sum(map(share, range(1, 100_001))) < 1.0
