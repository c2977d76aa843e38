"""The simplest candidate that is as good as the best, by one standard error of the paired difference."""

from evomerge.learned.tried import Tried, is_as_good, simplest_of_the_best

SHARES = (0.25,) * 4


def tried(granularity, *losses):
    return Tried(granularity=granularity, penalty=0.0, steps=5, losses=losses)


def test_a_gain_within_its_error_is_not_worth_more_coefficients():
    start = tried(None, 1.0, 2.0, 3.0, 4.0)
    noisy = tried("tensor", 0.5, 2.4, 2.6, 4.3)  # differences 0.5 -0.4 0.4 -0.3: mean 0.05, error 0.23
    assert simplest_of_the_best([start, noisy], SHARES) is start


def test_a_small_gain_in_every_unit_is_worth_them_however_unlike_the_units_are():
    start = tried(None, 1.0, 2.0, 3.0, 4.0)
    steady = tried("tensor", 0.9, 1.9, 2.8, 3.9)  # differences 0.1 0.1 0.2 0.1: mean 0.125, error 0.025
    assert simplest_of_the_best([start, steady], SHARES) is steady


def test_of_several_within_the_error_it_is_the_first():
    start, coarse, fine = (
        tried(None, 1, 1, 1, 1),
        tried("global", 0.5, 0.6, 0.5, 0.6),
        tried("column", 0.6, 0.4, 0.6, 0.5),
    )
    assert simplest_of_the_best([start, coarse, fine], SHARES) is coarse


def test_units_count_by_their_shares():
    one, other = tried("global", 1.0, 0.0), tried("tensor", 0.0, 0.5)
    assert not is_as_good(one, other, (0.9, 0.1))
    assert is_as_good(one, other, (0.1, 0.9))


def test_with_one_unit_the_least_loss_wins():
    assert simplest_of_the_best([tried(None, 1.0), tried("global", 0.9)], (1.0,)).granularity == "global"
