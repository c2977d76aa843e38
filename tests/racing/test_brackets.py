"""Brackets: the rungs of every trial, and the candidates that survive one."""

from collections import Counter

import pytest

from evomerge.errors import InvalidInput
from evomerge.racing import BracketSettings, bracket, rungs, survives_rung
from evomerge.racing.brackets import smac_brackets

PAPER = BracketSettings(total=81, minimum=1, eta=3, kind="hyperband")


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
    assert rungs(BracketSettings(total=64, minimum=64, kind="hyperband"), 5) == (64,)


def test_a_rung_that_has_all_items_already_is_left_out():
    """Of ten tasks of 20 items each, 192 of 200 items are 19.2 of every task: all of them."""
    assert rungs(BracketSettings(total=200, minimum=64, tasks=(20,) * 10), 5) == (64, 200)


def test_a_rung_that_adds_no_item_to_the_one_below_is_left_out():
    assert rungs(BracketSettings(total=80, minimum=1, tasks=(2,) * 40), 0) == (1, 80)


def test_the_best_third_survives():
    at_rung = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert survives_rung(0.45, at_rung, 3)
    assert not survives_rung(0.35, at_rung, 3)
    assert survives_rung(0.4, at_rung, 3)  # a tie with the second of six
    assert not survives_rung(float("nan"), at_rung, 3)


def test_while_few_got_there_the_best_survives():
    assert survives_rung(0.1, [], 3)
    assert survives_rung(0.2, [0.1], 3)
    assert not survives_rung(0.0, [0.1], 3)
    assert survives_rung(0.0, [float("nan")], 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eta": 1}, "eta must be 2 or more"),
        ({"minimum": 0}, "first rung"),
        ({"minimum": 101}, "first rung"),
        ({"kind": "hyperbend"}, "did you mean 'hyperband'"),
        ({"tasks": (40, 50)}, "the tasks have 90 items together, but total is 100"),
    ],
)
def test_settings_that_make_no_ladder_are_refused(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        BracketSettings(total=100, **arguments)


def test_smac_counts_the_items_down_from_the_maximum():
    """The published brackets of LFS and DIS: 22 configurations and 8667 items per sweep."""
    brackets = smac_brackets(100, 1000)
    assert brackets == [
        [(9, pytest.approx(1000 / 9)), (3, pytest.approx(1000 / 3)), (1, 1000.0)],
        [(5, pytest.approx(1000 / 3)), (1, 1000.0)],
        [(3, 1000.0)],
    ]
    assert sum(count for bracket in brackets for count, _ in bracket) == 22
    assert round(sum(count * items for bracket in brackets for count, items in bracket)) == 8667


def test_smac_has_the_brackets_of_the_paper_where_eta_divides_the_budget():
    brackets = smac_brackets(1, 81)
    assert [bracket[0] for bracket in brackets] == [(81, 1.0), (34, 3.0), (15, 9.0), (8, 27.0), (5, 81.0)]
    assert brackets[0] == [(81, 1.0), (27, 3.0), (9, 9.0), (3, 27.0), (1, 81.0)]


def test_smac_has_one_rung_where_minimum_and_maximum_are_near():
    assert smac_brackets(10, 29) == [[(1, 29.0)]]
    assert smac_brackets(10, 10, eta=2) == [[(1, 10.0)]]


@pytest.mark.parametrize("arguments", [(0, 10), (11, 10), (1, float("inf")), (1, 10, 1), (1, 10, 2.5)])
def test_smac_brackets_that_do_not_exist_are_refused(arguments):
    with pytest.raises(InvalidInput):
        smac_brackets(*arguments)


def test_smac_rounds_the_configurations_of_a_rung_in_floating_point():
    assert [configurations for configurations, _ in smac_brackets(1, 729)[0]] == [729, 243, 81, 27, 9, 3, 0]
    assert [configurations for configurations, _ in smac_brackets(1, 49, eta=7)[0]] == [49, 7, 0]
