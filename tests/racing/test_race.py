"""The race: who is dropped, what the sampler is told, and what cannot race."""

import dataclasses
import math

import numpy as np
import pytest
from races import OBJECTIVE, raced, scores, task_scores

from evomerge.errors import InvalidInput
from evomerge.evaluation.scores import Scores
from evomerge.objective import Objective
from evomerge.racing import RaceSettings, decide, information, require_means

SETTINGS = RaceSettings()
ONE = Objective(aggregate="weighted_mean", weights={"task": 1.0})


def generator(seed):
    return np.random.Generator(np.random.Philox(seed))


def pair(seed, items, discordant, behind=0.0):
    """Outcomes of an incumbent and of a candidate that is so much worse, on items of which they disagree on a share."""
    draws = generator(seed)
    incumbent = (draws.random(items) < 0.5).astype(float)
    chance = np.where(incumbent == 1, discordant + behind, discordant - behind)
    return incumbent, np.where(draws.random(items) < chance, 1 - incumbent, incumbent)


def share_dropped(runs, items, discordant, behind=0.0, **others):
    dropped = [
        raced(SETTINGS, OBJECTIVE, *pair(seed, items, discordant, behind), **others).drop for seed in range(runs)
    ]
    return sum(dropped) / runs


def one(outcomes, **others):
    return Scores({"task": task_scores(outcomes, **others)}, {})


@pytest.mark.parametrize(("discordant", "block"), [(0.1, 64), (0.3, 64), (0.5, 32)])
def test_a_candidate_that_is_as_good_is_dropped_in_at_most_3_of_100_races(discordant, block):
    runs = 300
    four_errors = 4 * math.sqrt(0.02 * 0.98 / runs)
    assert share_dropped(runs, 256, discordant, block=block) <= 0.02 + four_errors


def test_a_first_look_at_a_small_block_drops_hardly_anybody():
    """Exact for 64 items of a task, all that a first look sees, at its share of the error rate."""
    bound = decide(SETTINGS, ONE, one([1.0] * 1500), one([1.0] * 64)).boundary
    for discordant in range(1, 33):
        chance = sum(
            math.comb(discordant, losses)
            for losses in range(discordant + 1)
            if 2 * losses - discordant >= bound * math.sqrt(1 + discordant)
        )
        assert chance / 2**discordant <= 1.6 * 0.02 * math.log1p((math.e - 1) * 64 / 1500)


def test_a_candidate_10_points_worse_goes_soon():
    early = 0
    for seed in range(40):
        decision = raced(SETTINGS, OBJECTIVE, *pair(seed, 1500, 0.3, 0.1))
        early += decision.drop and decision.items <= 600
    assert early >= 34


def test_a_candidate_that_is_better_is_never_dropped():
    assert share_dropped(40, 256, 0.3, behind=-0.1) == 0


def test_long_tails_and_tasks_on_other_scales_are_no_trouble():
    objective = Objective(
        aggregate="weighted_mean", weights={"task 0": 5.0, "task 1": 1.0, "task 2": 1.0, "task 3": 0.0}
    )
    dropped = 0
    for seed in range(200):
        incumbent, candidate = generator(seed).standard_exponential((2, 256)) * np.tile([1.0, 100.0, 0.01, 1.0], 64)
        dropped += raced(SETTINGS, objective, incumbent, candidate).drop
    assert dropped <= 200 * 0.02 + 4 * math.sqrt(200 * 0.02 * 0.98)


def test_the_statistic_and_the_estimate_are_those_worked_by_hand():
    incumbent = scores({"first": [1, 1, 1, 0], "second": [1, 0]})
    seen = scores({"first": [0, 1], "second": [1, 1]}, {"first": 2, "second": 2})
    objective = Objective(aggregate="weighted_mean", weights={"first": 3.0, "second": 1.0})
    decision = decide(RaceSettings(minimum=1), objective, incumbent, seen)
    # one loss of weight 3/4 of 2 items, one gain of weight 1/4 of 2 items; the larger square counts twice
    assert decision.difference == pytest.approx(-3 / 8 + 1 / 8)
    assert decision.statistic == pytest.approx((-3 / 8 + 1 / 8) / math.sqrt(2 * (3 / 8) ** 2 + (1 / 8) ** 2))
    assert decision.estimate == pytest.approx(3 / 4 * 0.75 + 1 / 4 * 0.5 - 1 / 4)
    assert decision.items == 4
    assert not decision.drop


def test_the_estimate_is_the_value_once_all_items_are_seen():
    incumbent, candidate = pair(1, 100, 0.3)
    decision = decide(SETTINGS, ONE, one(incumbent), one(candidate))
    assert decision.estimate == pytest.approx(candidate.mean())


def test_nobody_is_dropped_before_the_minimum_or_after_the_last_block():
    incumbent = one([1.0] * 200)
    assert not decide(SETTINGS, ONE, incumbent, one([0.0] * 63)).drop
    assert decide(SETTINGS, ONE, incumbent, one([0.0] * 64)).drop
    assert not decide(SETTINGS, ONE, incumbent, one([0.0] * 200)).drop
    assert decide(RaceSettings(minimum=32), ONE, incumbent, one([0.0] * 32)).drop


def test_blocks_before_the_minimum_are_no_looks():
    incumbent, seen = one([1.0] * 200), one([1.0] * 96)
    with_small_ones = decide(SETTINGS, ONE, incumbent, seen, [{"task": 16}, {"task": 32}, {"task": 64}])
    assert with_small_ones == decide(SETTINGS, ONE, incumbent, seen, [{"task": 64}])
    assert with_small_ones.boundary > decide(SETTINGS, ONE, incumbent, seen).boundary  # one look the less


def test_without_any_difference_there_is_no_evidence():
    decision = decide(SETTINGS, ONE, one([1.0, 0.0] * 100), one([1.0, 0.0] * 50))
    assert (decision.drop, decision.difference, decision.statistic) == (False, 0.0, 0.0)


def test_where_less_is_better_more_is_worse():
    low = {"metric": "brier", "aggregate": "brier_score", "higher_is_better": False}
    incumbent = one([0.2] * 200, **low)
    assert decide(SETTINGS, ONE, incumbent, one([0.9] * 100, **low)).drop
    ahead = decide(SETTINGS, ONE, incumbent, one([0.1] * 100, **low))
    assert ahead.statistic > 9
    assert ahead.estimate == pytest.approx(-0.1)


@pytest.mark.parametrize("scale", [(0.2, 0.8), (0.8, 0.2)])
def test_normalised_objectives_count_from_the_worst_source_to_the_best(scale):
    objective = Objective(aggregate="weighted_mean", weights={"task": 1.0}, scales={"task": scale})
    incumbent = one([1.0, 0.0] * 100, higher_is_better=scale[0] < scale[1])
    seen = one([0.0] * 100, higher_is_better=scale[0] < scale[1])
    decision = decide(SETTINGS, objective, incumbent, seen)
    sign = 1 if scale[0] < scale[1] else -1
    assert decision.difference == pytest.approx(-sign * 0.5 / 0.6)
    assert decision.drop == (sign > 0)


def test_a_minimum_races_on_the_incumbents_worst_task():
    objective = Objective(aggregate="min", weights={"easy": 1.0, "hard": 1.0})
    incumbent = scores({"easy": [1] * 200, "hard": [1, 0] * 100})
    assert not decide(SETTINGS, objective, incumbent, scores({"easy": [0] * 50, "hard": [1, 0] * 25})).drop
    assert decide(SETTINGS, objective, incumbent, scores({"easy": [1] * 50, "hard": [0] * 50})).drop


def test_a_geometric_mean_is_linearised_at_the_incumbent():
    objective = Objective(aggregate="geometric_mean", weights={"easy": 1.0, "hard": 1.0})
    incumbent = scores({"easy": [1] * 200, "hard": [1, 0, 0, 0] * 50})
    decision = decide(SETTINGS, objective, incumbent, scores({"easy": [1] * 100, "hard": [1, 1, 0, 0] * 25}))
    assert decision.difference == pytest.approx(0.5 / 2 / 0.25 * 0.25)  # value · weight / point · difference


def test_weighted_means_and_perplexities_race_on_what_they_are_means_of():
    outcomes, weights = (-3.0, -1.0, -2.0, -6.0), (1.0, 1.0, 2.0, 4.0)
    bits = {"metric": "bits", "higher_is_better": False, "aggregate": "bits_per_byte"}
    incumbent = one(outcomes, **bits, weights=weights, value=12 / 8 / math.log(2))
    seen = one((-4.0, -1.0, -2.0), **bits, weights=weights[:3], value=7 / 4 / math.log(2))
    decision = decide(SETTINGS, ONE, incumbent, seen)
    assert decision.difference == pytest.approx(-1 / 4 / math.log(2))
    assert decision.estimate == pytest.approx(-12 / 8 / math.log(2) - 1 / 4 / math.log(2))
    perplexity = {"metric": "ppl", "higher_is_better": False, "aggregate": "perplexity"}
    incumbent = one([-2.0] * 4, **perplexity, value=math.exp(2))
    seen = one([-2.001] * 2, **perplexity, value=math.exp(2.001))
    difference = decide(SETTINGS, ONE, incumbent, seen).difference
    assert difference == pytest.approx(math.exp(2) - math.exp(2.001), rel=1e-3)


@pytest.mark.parametrize("aggregate", ["median", "custom", "f1", "weighted_perplexity"])
def test_metrics_of_a_whole_corpus_are_refused(aggregate):
    corpus = one([1.0, 0.0, 0.0], aggregate=aggregate, value=0.5)
    with pytest.raises(InvalidInput, match="fidelity: full"):
        require_means([corpus])
    with pytest.raises(InvalidInput, match=rf"'task' is scored by 'acc' \({aggregate}\)"):
        decide(SETTINGS, ONE, corpus, corpus)


def test_a_function_of_the_tasks_own_that_is_the_mean_may_race():
    incumbent = one([1.0, 0.0] * 100, aggregate="custom")
    require_means([incumbent])
    assert decide(SETTINGS, ONE, incumbent, one([0.0, 0.0] * 50, aggregate="custom")).difference == -0.5


def test_a_function_of_the_tasks_own_is_the_mean_if_it_is_that_of_one_source_whose_items_differ():
    alike, apart = one([0.0] * 4, aggregate="custom"), one([1.0, 0.0] * 2, aggregate="custom")
    require_means([alike, apart])
    with pytest.raises(InvalidInput, match="the same outcome on all of its items"):
        require_means([alike, alike])
    for other in (one([1.0] * 4, aggregate="custom", value=0.9), one([1.0, 0.0], aggregate="custom", value=1.0)):
        with pytest.raises(InvalidInput, match="no mean over items"):
            require_means([apart, other])


def test_items_and_tasks_that_the_incumbent_lacks_are_refused():
    with pytest.raises(InvalidInput, match="not scored on item 7 of task 'task'"):
        decide(SETTINGS, ONE, one([1.0] * 4), one([1.0], items=(7,)))
    with pytest.raises(InvalidInput, match="no scores of task 'other'"):
        decide(SETTINGS, ONE, one([1.0] * 4), scores({"other": [1.0]}))
    with pytest.raises(InvalidInput, match="by 'acc_norm' and by 'acc'"):
        decide(SETTINGS, ONE, one([1.0] * 4), one([1.0], metric="acc_norm"))


def test_items_are_paired_by_their_ids():
    incumbent = one([1.0, 0.0] * 100)
    seen = one([0.0, 1.0] * 40, items=tuple(item ^ 1 for item in range(80)))
    assert decide(SETTINGS, ONE, incumbent, seen).difference == 0


def test_outcomes_that_are_not_finite_prove_nothing():
    decision = decide(SETTINGS, ONE, one([0.0] * 200), one([-math.inf] * 100))
    assert not decision.drop
    assert math.isnan(decision.statistic)


def test_information_is_the_share_of_items_where_tasks_go_at_one_pace():
    incumbent = scores({"first": [1] * 100, "second": [1] * 300})
    objective = Objective(aggregate="weighted_mean", weights={"first": 2.0, "second": 1.0})
    assert information(objective, incumbent, {"first": 25, "second": 75}) == pytest.approx(0.25)
    assert information(objective, incumbent, {"first": 100, "second": 300}) == 1


def test_a_task_that_was_not_seen_holds_the_information_back_and_it_only_grows():
    incumbent = scores({"first": [1] * 100, "second": [1] * 100})
    objective = Objective(aggregate="weighted_mean", weights={"first": 1.0, "second": 1.0})
    counts = [{"first": 50}, {"first": 100}, {"first": 100, "second": 1}, {"first": 100, "second": 50}]
    found = [information(objective, incumbent, each) for each in counts]
    assert found == sorted(found)
    assert found[0] < 0.01  # of (1/100 + 1/100) / (1/50 + 1/0.5)
    assert found[3] == pytest.approx((2 / 100) / (1 / 100 + 1 / 50))


def test_an_objective_that_nothing_moves_goes_on():
    objective = Objective(aggregate="geometric_mean", weights={"first": 1.0, "second": 1.0})
    incumbent = scores({"first": [1] * 100, "second": [0] * 100})
    decision = decide(SETTINGS, objective, incumbent, scores({"first": [0] * 50, "second": [0] * 50}))
    assert not decision.drop
    assert decision.fraction == 0.5


def test_the_same_outcomes_give_the_same_decision_whatever_came_before():
    incumbent, candidate = pair(5, 1500, 0.3, 0.05)
    first = raced(SETTINGS, OBJECTIVE, incumbent, candidate)
    raced(RaceSettings(alpha=0.3), OBJECTIVE, incumbent, candidate, block=32)
    assert raced(SETTINGS, OBJECTIVE, incumbent, candidate) == first
    assert dataclasses.asdict(first)["drop"]


@pytest.mark.parametrize("arguments", [{"alpha": 0.0}, {"alpha": 0.6}, {"minimum": 0}, {"spending": "all"}])
def test_settings_that_mean_nothing_are_refused(arguments):
    with pytest.raises(InvalidInput):
        RaceSettings(**arguments)
