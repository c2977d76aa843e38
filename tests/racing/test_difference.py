"""The difference estimator: unbiased whatever is predicted, precise where the prediction is good, and its race."""

import dataclasses
import math

import numpy as np
import pytest
from races import OBJECTIVE, raced, scores, task_scores
from siblings import as_scores, draw_of, drawn, raced_by_difference, siblings

from evomerge.errors import InvalidInput
from evomerge.evaluation.aggregates import MEANS, RECOMPUTED, WEIGHTED, aggregate
from evomerge.evaluation.scores import Scores
from evomerge.objective import Objective
from evomerge.racing import DifferenceSettings, ItemHistory, RaceSettings, decide_by_difference, make_draw

SETTINGS = DifferenceSettings()
ONLY_WORSE = DifferenceSettings(futility=0.0)
ONE = Objective(aggregate="weighted_mean", weights={"task": 1.0})
ITEMS = 512


def generator(seed):
    return np.random.Generator(np.random.Philox(seed))


def one(outcomes, **others):
    return Scores({"task": task_scores(outcomes, **others)}, {})


def estimates(rows, incumbent, earlier, runs, block=1):
    """Of draws of the same candidate, the estimates of its value, and what they say is their standard error."""
    found = [
        decide_by_difference(ONLY_WORSE, draw, as_scores(rows, drawn(draw, block)), block)
        for draw in (draw_of(incumbent, earlier, trial=trial) for trial in range(runs))
    ]
    return np.array([each.estimate for each in found]), np.array([each.stderr for each in found])


def test_the_estimate_is_unbiased():
    rows = siblings(generator(1), 10, 400)
    found, _ = estimates(rows[9], rows[8], rows[:8], 2000)
    assert abs(found.mean() - rows[9].mean()) < 0.001


def test_the_estimate_is_unbiased_where_predictions_are_wrong():
    rows = siblings(generator(1), 10, 400)
    found, _ = estimates(rows[9], rows[8], 1 - rows[:8], 400)
    assert abs(found.mean() - rows[9].mean()) < 3 * found.std() / math.sqrt(len(found))


def test_the_standard_error_is_that_of_the_draws():
    rows = siblings(generator(2), 10, 400)
    found, errors = estimates(rows[9], rows[8], rows[:8], 300)
    assert found.std() == pytest.approx(errors.mean(), rel=0.25)


def test_what_earlier_candidates_say_is_worth_half_of_the_items():
    rows = siblings(generator(3), 10, 400)
    informed, _ = estimates(rows[9], rows[8], rows[:8], 200)
    alone, _ = estimates(rows[9], rows[8], rows[:0], 200)
    assert informed.var() < alone.var() / 2


def test_every_item_may_be_drawn_with_the_probability_that_is_stated_and_all_are_in_the_end():
    rows = siblings(generator(4), 6, 200)
    draws = [draw_of(rows[5], rows[:5], trial=trial) for trial in range(400)]
    chances = draws[0].probabilities(0)
    assert chances.min() > 0.05
    assert chances.sum() == pytest.approx(64)
    share = np.mean([_in_order(draw, drawn(draw, 0)) for draw in draws], axis=0)
    assert np.abs(share - chances).max() < 4.5 * 0.5 / math.sqrt(len(draws))
    for draw in draws[:5]:
        assert drawn(draw, len(draw.blocks) - 1).all()
        assert sum(len(ids) for block in draw.blocks for _, ids in block.chosen) == 200
        assert (draw.probabilities(len(draw.blocks) - 1) == 1).all()


def _in_order(draw, mask):
    """Items in turn of the tasks, in the order of the draw: task by task."""
    return np.concatenate([mask[number::4] for number in range(4)])


def test_items_on_which_earlier_candidates_differ_are_drawn_sooner():
    rows = siblings(generator(5), 12, 400)
    draw = draw_of(rows[10], rows[:10])
    varied = _in_order(draw, rows[:10].std(axis=0) > 0)
    assert draw.probabilities(0)[varied].mean() > 2 * draw.probabilities(0)[~varied].mean()


def test_a_draw_is_keyed_by_seed_and_trial_and_by_nothing_else():
    rows = siblings(generator(6), 4, 200)
    first = draw_of(rows[3], rows[:3], trial=5)
    assert draw_of(rows[3], rows[:3], trial=5).blocks == first.blocks
    assert draw_of(rows[3], rows[:3], trial=6).blocks != first.blocks
    assert draw_of(rows[3], rows[:3], trial=5, seed=1).blocks != first.blocks


def test_predictions_are_shrunken_means_worked_by_hand():
    history = ItemHistory([one([1.0, 0.0, 1.0]), one([1.0], items=(0,)), one([-math.inf], items=(1,))])
    expected, variances = history.predict("task", (0, 1, 2, 7))
    mean = 3 / 4  # of the four outcomes; the item that nobody has seen is expected to be like them
    assert expected == pytest.approx([(2 + 0.2 * mean) / 2.2, 0.2 * mean / 1.2, (1 + 0.2 * mean) / 1.2, mean])
    assert variances == pytest.approx(expected * (1 - expected))


def test_nothing_is_predicted_of_a_task_without_outcomes():
    expected, variances = ItemHistory().predict("task", (0, 1))
    assert (expected.tolist(), variances.tolist()) == ([0.0, 0.0], [0.0, 0.0])


def test_the_difference_is_the_one_worked_by_hand():
    history = ItemHistory([one([1.0, 1.0, 0.0, 0.0])])
    draw = make_draw(ONE, one([1.0, 0.0, 1.0, 0.0]), history, seed=0, trial=0, minimum=2, block=2)
    ids = dict(draw.blocks[0].chosen)["task"]
    found = decide_by_difference(SETTINGS, draw, one([0.0] * len(ids), items=ids), 0)
    predicted, chances = draw.predicted, draw.probabilities(0)
    by_hand = predicted.sum() / 4 - 0.5 - sum(predicted[item] / chances[item] for item in ids) / 4
    assert found.difference == pytest.approx(by_hand)
    assert found.estimate == pytest.approx(0.5 + by_hand)


def test_once_all_items_are_seen_the_estimate_is_the_value():
    rows = siblings(generator(7), 5, 200)
    draw = draw_of(rows[3], rows[:3])
    last = decide_by_difference(SETTINGS, draw, as_scores(rows[4]), len(draw.blocks) - 1)
    assert last.estimate == pytest.approx(rows[4].mean())
    assert (last.drop, last.stderr) == (False, 0)


def test_an_equal_candidate_is_dropped_as_worse_in_at_most_3_of_100_races():
    dropped = 0
    for seed in range(200):
        rows = siblings(generator(seed), 8, ITEMS)
        dropped += raced_by_difference(ONLY_WORSE, draw_of(rows[6], rows[:6], seed=seed), rows[7]).drop
    assert dropped <= 200 * 0.02 + 2 * math.sqrt(200 * 0.02 * 0.98)


def test_a_candidate_that_would_take_the_lead_is_dropped_in_at_most_3_of_100_races():
    dropped, found, seed = 0, 0, 0
    while found < 200:
        rows = siblings(generator(seed), 8, ITEMS)
        lead = rows[7].sum() - rows[6].sum()
        if 0 < lead < 8:  # by a hair: those that are far ahead are never in danger
            found += 1
            dropped += raced_by_difference(SETTINGS, draw_of(rows[6], rows[:6], seed=seed), rows[7]).drop
        seed += 1
    assert dropped <= 200 * 0.02 + 2 * math.sqrt(200 * 0.02 * 0.98)


def test_a_race_on_drawn_items_takes_two_thirds_of_a_paired_one_at_most():
    by_difference = paired = 0
    for seed in range(30):
        rows = siblings(generator(seed), 10, ITEMS)
        worse = np.minimum(rows[9], generator(seed + 1000).random(ITEMS) < 0.95)
        by_difference += raced_by_difference(SETTINGS, draw_of(rows[8], rows[:8], seed=seed), worse).items
        paired += raced(RaceSettings(), OBJECTIVE, rows[8], worse).items
    assert by_difference < paired * 2 / 3


def test_nobody_is_dropped_while_ahead_or_after_the_last_block():
    rows = siblings(generator(8), 6, ITEMS)
    draw = draw_of(np.zeros(ITEMS), rows[:5])
    assert not raced_by_difference(SETTINGS, draw, rows[5]).drop
    nothing_right = as_scores(np.zeros(ITEMS))
    behind = draw_of(rows[4], rows[:5])
    assert not decide_by_difference(SETTINGS, behind, nothing_right, len(behind.blocks) - 1).drop
    assert raced_by_difference(SETTINGS, behind, np.zeros(ITEMS)).items < 150


def test_the_outcome_of_an_item_counts_once_however_heavy_the_item_is():
    bits = {"metric": "bits", "higher_is_better": False, "aggregate": "bits_per_byte", "weights": (1.0, 3.0, 0.5, 0.5)}
    draw = make_draw(ONE, one([-1.0] * 4, **bits), ItemHistory(), seed=0, trial=0, minimum=1, block=1)
    assert draw.shares * math.log(2) == pytest.approx([0.2] * 4)


@pytest.mark.parametrize("kind", sorted(RECOMPUTED - {"median"}))
def test_once_all_items_are_seen_the_estimate_is_the_value_of_every_kind_of_metric(kind):
    luck = generator(11)
    weights = luck.integers(20, 400, 60).astype(float)
    per_word = -1.0 - 0.1 * luck.random(60)
    change = -1e-5 * (0.5 + luck.random(60))  # small: perplexities are linearised

    def outcomes(each):
        found = (each * weights).tolist() if kind in WEIGHTED else each.tolist()
        own = {"weights": tuple(weights)} if kind in WEIGHTED else {}
        value = aggregate(kind, found, own.get("weights"))
        return one(found, aggregate=kind, higher_is_better=kind in MEANS, value=value, **own)

    incumbent, candidate = outcomes(per_word), outcomes(per_word + change)
    draw = make_draw(ONE, incumbent, ItemHistory([incumbent]), seed=0, trial=0, minimum=16, block=16)
    found = decide_by_difference(SETTINGS, draw, candidate, len(draw.blocks) - 1)
    assert found.difference == pytest.approx(ONE.value(candidate) - ONE.value(incumbent), rel=1e-3)


def test_where_less_is_better_more_is_worse():
    low = {"metric": "brier", "aggregate": "brier_score", "higher_is_better": False}
    incumbent, history = one([0.2] * 400, **low), ItemHistory([one([0.2, 0.3] * 200, **low)])
    draw = make_draw(ONE, incumbent, history, seed=0, trial=0, minimum=64, block=64)
    ids = dict(draw.blocks[0].chosen)["task"]
    assert decide_by_difference(SETTINGS, draw, one([0.9] * len(ids), items=ids, **low), 0).drop
    assert not decide_by_difference(SETTINGS, draw, one([0.1] * len(ids), items=ids, **low), 0).drop


def test_of_a_minimum_all_tasks_are_drawn_though_the_worst_one_counts():
    objective = Objective(aggregate="min", weights={"easy": 1.0, "hard": 1.0})
    incumbent = scores({"easy": [1] * 200, "hard": [1, 0] * 100})
    history = ItemHistory([incumbent, scores({"easy": [1] * 200, "hard": [0, 1] * 100})])
    draw = make_draw(objective, incumbent, history, seed=0, trial=0, minimum=64, block=64)
    assert (draw.probabilities(0) > 0).all()
    assert not draw.shares[:200].any()


def test_where_nothing_is_in_doubt_items_are_drawn_alike_and_nothing_is_dropped():
    draw = make_draw(ONE, one([1.0] * 200), ItemHistory([one([1.0] * 200)]), seed=0, trial=0, minimum=64, block=64)
    assert draw.probabilities(0) == pytest.approx(np.full(200, 0.32))
    ids = dict(draw.blocks[0].chosen)["task"]
    found = decide_by_difference(SETTINGS, draw, one([1.0] * len(ids), items=ids), 0)
    assert (found.drop, found.difference) == (False, 0)


def test_outcomes_that_are_not_finite_prove_nothing():
    rows = siblings(generator(9), 4, 200)
    draw = draw_of(rows[3], rows[:3])
    found = decide_by_difference(SETTINGS, draw, as_scores(np.full(200, math.nan), drawn(draw, 0)), 0)
    assert not found.drop
    assert math.isnan(found.estimate)


def test_the_same_outcomes_give_the_same_decision():
    rows = siblings(generator(10), 6, ITEMS)
    decisions = [raced_by_difference(SETTINGS, draw_of(rows[4], rows[:4]), np.zeros(ITEMS)) for _ in range(2)]
    assert dataclasses.asdict(decisions[0]) == dataclasses.asdict(decisions[1])


@pytest.mark.parametrize("arguments", [{"alpha": 0.0}, {"futility": 0.6}, {"spending": "all"}])
def test_settings_that_mean_nothing_are_refused(arguments):
    with pytest.raises(InvalidInput):
        DifferenceSettings(**arguments)
