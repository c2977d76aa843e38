"""Brackets: the rungs of every trial, and who goes on at one."""

from collections import Counter

import pytest

from evomerge.errors import InvalidInput
from evomerge.racing import BracketSettings, bracket, goes_on, rungs

PAPER = BracketSettings(total=81, minimum=1, eta=3, rule="hyperband")


def test_successive_halving_starts_everybody_at_the_first_rung():
    settings = BracketSettings(total=1500, minimum=64, eta=3)
    assert {rungs(settings, trial) for trial in range(50)} == {(64, 192, 576, 1500)}


def test_hyperband_has_the_brackets_of_the_paper():
    """Li et al. (2018), table 1: R = 81, eta = 3, 81, 34, 15, 8 and 5 candidates from 1, 3, 9, 27 and 81 on."""
    cycle = 81 + 34 + 15 + 8 + 5
    counts = Counter(rungs(PAPER, trial)[0] for trial in range(cycle))
    assert counts == {1: 81, 3: 34, 9: 15, 27: 8, 81: 5}
    assert [bracket(PAPER, trial) for trial in range(cycle)] == [
        bracket(PAPER, trial + cycle) for trial in range(cycle)
    ]
    assert rungs(PAPER, 0) == (1, 3, 9, 27, 81)
    assert rungs(PAPER, cycle - 1) == (81,)


def test_as_many_items_as_there_are_at_the_first_rung_make_one_rung():
    assert rungs(BracketSettings(total=64, minimum=64, rule="hyperband"), 5) == (64,)


def test_the_best_third_goes_on():
    at_rung = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert goes_on(0.45, at_rung, 3)
    assert not goes_on(0.35, at_rung, 3)
    assert goes_on(0.4, at_rung, 3)  # a tie with the second of six
    assert not goes_on(float("nan"), at_rung, 3)


def test_while_few_got_there_the_best_goes_on():
    assert goes_on(0.1, [], 3)
    assert goes_on(0.2, [0.1], 3)
    assert not goes_on(0.0, [0.1], 3)
    assert goes_on(0.0, [float("nan")], 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eta": 1}, "eta must be 2 or more"),
        ({"minimum": 0}, "first rung"),
        ({"minimum": 101}, "first rung"),
        ({"rule": "hyperbend"}, "did you mean 'hyperband'"),
    ],
)
def test_settings_that_make_no_ladder_are_refused(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        BracketSettings(total=100, **arguments)
