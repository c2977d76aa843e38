"""Two models on the same items: which test, which interval, how many items would tell."""

import numpy as np
import pytest
from scipy.stats import binom, ttest_rel

from evomerge.errors import InvalidInput
from evomerge.evaluation.aggregates import aggregate
from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.objective import Objective
from evomerge.verdict import bootstrap
from evomerge.verdict.paired import paired_difference


def task(outcomes, kind="mean", higher=True, weights=None, items=None, value=None):
    outcomes = tuple(float(each) for each in outcomes)
    weights = tuple(float(each) for each in weights) if weights is not None else None
    items = tuple(range(len(outcomes))) if items is None else tuple(items)
    value = aggregate(kind, outcomes, weights) if value is None else value
    return TaskScores(
        metric="metric",
        higher_is_better=higher,
        items=items,
        outcomes=outcomes,
        value=value,
        stderr=None,
        aggregate=kind,
        weights=weights,
    )


def scores(*tasks):
    return Scores({f"task_{number}": each for number, each in enumerate(tasks)}, {})


def objective(count=1, kind="weighted_mean", **scales):
    weights = {f"task_{number}": 1.0 for number in range(count)}
    return Objective(aggregate=kind, weights=weights, scales=scales or None)


def compare(first, second, over=None, seed=0):
    return paired_difference(first, second, over or objective(len(first.tasks)), seed=seed)


def test_right_and_wrong_answers_of_one_task_are_mcnemar():
    found = compare(scores(task([1, 1, 1])), scores(task([1, 0, 0])))
    assert (found.test, found.items, found.discordant) == ("McNemar", 3, 2)
    assert found.difference == pytest.approx(2 / 3)
    assert found.p == pytest.approx(0.32, abs=1e-4)  # see test_mcnemar


def test_items_are_paired_by_their_number_not_by_their_place():
    first = scores(task([1, 0, 1, 1], items=[3, 1, 2, 0]))
    second = scores(task([1, 1, 0, 1], items=[0, 2, 1, 3]))
    assert compare(first, second).discordant == 0


def test_a_metric_that_shall_be_low_counts_the_other_way():
    better, worse = scores(task([0, 0, 0, 1], higher=False)), scores(task([1, 1, 0, 1], higher=False))
    found = compare(better, worse)
    assert found.difference == 0.5
    assert found.test == "McNemar"
    low = compare(scores(task([0, 0], higher=False), task([1, 0])), scores(task([1, 0], higher=False), task([0, 0])))
    assert low.difference == 0.5
    assert low.p == compare(scores(task([1, 1]), task([1, 0])), scores(task([0, 1]), task([0, 0]))).p


def test_unequal_tasks_and_normalised_ones_weigh_their_items():
    first = scores(task([1, 1, 0, 0]), task([1, 1, 1, 0, 0, 1]))
    second = scores(task([1, 0, 0, 0]), task([1, 0, 0, 0, 0, 0]))
    assert compare(first, second).test == "sign flip"
    assert compare(first, second).difference == pytest.approx((0.25 + 0.5) / 2)
    scaled = compare(first, second, objective(2, task_0=(0.0, 0.5), task_1=(0.0, 1 / 3)))
    assert scaled.test == "McNemar"  # 1/4 / 0.5 = 1/6 / (1/3): each item is worth the same again
    assert scaled.difference == pytest.approx((0.5 + 1.5) / 2)


def test_equal_outcomes_are_no_difference():
    same = scores(task([1, 0, 1]))
    found = compare(same, same)
    assert (found.difference, found.p, found.discordant, found.items_needed(0.05)) == (0.0, 1.0, 0, None)
    assert found.low < 0 < found.high
    real = compare(scores(task([0.5, 0.25])), scores(task([0.5, 0.25])))
    assert (real.difference, real.p, real.low, real.high) == (0.0, 1.0, 0.0, 0.0)


def test_rounding_is_no_lead():
    tenths = scores(task([0.1] * 3, value=0.1 + 2e-17))
    assert compare(tenths, scores(task([0.1] * 3, value=0.1))).difference == 0.0


def test_real_valued_outcomes_are_resampled_and_agree_with_the_t_test_where_that_holds():
    generator = np.random.Generator(np.random.Philox(3))
    second = generator.normal(size=40)
    first = second + generator.normal(0.3, 1.0, size=40)
    found = compare(scores(task(first)), scores(task(second)))
    theirs = ttest_rel(first, second)
    interval = theirs.confidence_interval()
    assert found.test == "paired bootstrap"
    assert found.p == pytest.approx(theirs.pvalue, abs=0.02)
    assert (found.low, found.high) == (pytest.approx(interval.low, abs=0.05), pytest.approx(interval.high, abs=0.05))


def test_resamples_are_the_same_for_the_same_seed():
    first, second = scores(task(np.linspace(0, 1, 90))), scores(task(np.linspace(0, 0.9, 90) ** 2))
    assert compare(first, second, seed=1) == compare(first, second, seed=1)
    assert compare(first, second, seed=1) != compare(first, second, seed=2)


def test_few_kinds_of_outcomes_are_counted_with_the_same_result_as_drawing_items(monkeypatch):
    generator = np.random.Generator(np.random.Philox(4))
    first, second = (scores(*(task(generator.random(80) < share) for _ in "ab")) for share in (0.7, 0.55))
    counted = compare(first, second, objective(2, "min"))
    monkeypatch.setattr(bootstrap, "_FEW_KINDS", 0)
    drawn = compare(first, second, objective(2, "min"))
    assert counted.test == "paired bootstrap"
    assert counted.p == pytest.approx(drawn.p, rel=0.3)
    assert (counted.low, counted.high) == (pytest.approx(drawn.low, abs=0.02), pytest.approx(drawn.high, abs=0.02))


@pytest.mark.parametrize("kind", ["perplexity", "weighted_perplexity", "bits_per_byte", "median", "brier_score"])
def test_every_aggregate_is_compared_on_resampled_items(kind):
    generator = np.random.Generator(np.random.Philox(6))
    logs = -generator.gamma(2.0, size=60)
    weights = generator.integers(5, 50, 60) if kind in ("weighted_perplexity", "bits_per_byte") else None
    first = scores(task(logs * 0.8, kind, kind == "median", weights))
    second = scores(task(logs + generator.normal(0, 0.1, 60), kind, kind == "median", weights))
    higher_is_better = kind in ("median", "brier_score")  # the numbers are negative here
    first, second = (
        scores(task(each.tasks["task_0"].outcomes, kind, higher_is_better, weights)) for each in (first, second)
    )
    found = compare(first, second)
    assert found.test == "paired bootstrap"
    assert 0 < found.low <= found.difference <= found.high
    assert found.p < 0.01


@pytest.mark.parametrize("aggregation", ["min", "geometric_mean"])
def test_objectives_that_are_no_mean_are_resampled(aggregation):
    first = scores(task([1, 1, 1, 0] * 10), task([1, 1, 0, 0] * 10))
    second = scores(task([1, 1, 0, 0] * 10), task([1, 0, 0, 0] * 10))
    found = compare(first, second, objective(2, aggregation))
    assert found.test == "paired bootstrap"
    assert found.p < 0.01


def test_an_aggregate_of_the_tasks_own_is_taken_as_a_mean_only_where_it_is_one():
    mean = compare(scores(task([1, 1, 0], value=2 / 3)), scores(task([0, 1, 0], value=1 / 3)))
    assert mean.test == "McNemar"
    own = [
        scores(
            TaskScores(metric="f1", higher_is_better=True, items=(0, 1, 2), outcomes=outcomes, value=value, stderr=None)
        )
        for outcomes, value in (((1.0, 1.0, 0.0), 0.9), ((0.0, 1.0, 0.0), 0.4))
    ]
    found = compare(*own)
    assert (found.test, found.p, found.low, found.high, found.items_needed(0.05)) == ("none", None, None, None, None)
    assert found.difference == pytest.approx(0.5)


def test_one_item_gives_no_proof_and_no_error():
    binary = compare(scores(task([1])), scores(task([0])))
    assert (binary.p, binary.items_needed(0.05)) == (1.0, 6)
    assert compare(scores(task([0.75])), scores(task([0.5]))).test == "none"


def test_a_model_with_an_infinite_score_is_told_from_others_without_a_test():
    broken = scores(task([-1.0, float("-inf")], "perplexity", False))
    found = compare(scores(task([-1.0, -2.0], "perplexity", False)), broken)
    assert (found.test, found.p) == ("none", None)
    assert 1e300 < found.difference < float("inf")


@pytest.mark.parametrize(
    ("second", "match"),
    [
        (scores(task([1, 0]), task([1, 0])), r"tasks \['task_0'\], the other of \['task_0', 'task_1'\]"),
        (scores(task([1, 0, 1])), "2 items of the winner and 3 of the other, 1 of them of one only"),
        (scores(task([1, 0], items=[0, 7])), "2 of them of one only"),
        (scores(task([1, 0], higher=False)), "only scores of one metric can be compared"),
    ],
)
def test_different_items_are_refused(second, match):
    with pytest.raises(InvalidInput, match=match):
        compare(scores(task([1, 0])), second)


def exact_power(items, discordant, difference, level):
    """Of McNemar's exact test, summed over the number of discordant items."""
    power, favour = 0.0, (discordant + difference) / 2 / discordant
    for count in range(items + 1):
        chance = binom.pmf(count, items, discordant)
        if chance > 1e-9:
            needed = int(binom.isf(level / 2, count, 0.5)) + 1
            power += chance * binom.sf(needed - 1, count, favour)
    return power


@pytest.mark.parametrize("level", [0.05, 0.0125])
@pytest.mark.parametrize(("items", "wins", "losses"), [(1000, 125, 75), (400, 30, 22), (200, 60, 52)])
def test_so_many_items_as_are_said_to_be_needed_have_a_power_of_80_percent(items, wins, losses, level):
    first = [1] * wins + [0] * losses + [1] * (items - wins - losses)
    second = [0] * wins + [1] * losses + [1] * (items - wins - losses)
    needed = compare(scores(task(first)), scores(task(second))).items_needed(level)
    assert exact_power(needed, (wins + losses) / items, (wins - losses) / items, level) == pytest.approx(0.8, abs=0.03)


def test_real_valued_differences_are_told_with_as_many_items_as_the_t_test_needs():
    generator = np.random.Generator(np.random.Philox(8))
    differences = generator.normal(size=2000)
    differences = (differences - differences.mean()) / differences.std() + 0.1
    base = generator.normal(size=2000)
    needed = compare(scores(task(base + differences)), scores(task(base))).items_needed(0.05)
    assert needed == pytest.approx(((1.96 + 0.8416) / 0.1) ** 2, rel=0.1)


@pytest.mark.parametrize(
    ("kind", "aggregation", "draw"),
    [
        ("mean", "weighted_mean", lambda generator: generator.normal(size=20)),
        ("perplexity", "weighted_mean", lambda generator: -generator.gamma(2.0, size=20)),
        ("mean", "geometric_mean", lambda generator: generator.random(40) < 0.6),
        ("mean", "min", lambda generator: generator.random(40) < 0.6),
    ],
)
def test_the_bootstrap_keeps_its_level_and_its_coverage(kind, aggregation, draw, monkeypatch):
    monkeypatch.setattr(bootstrap, "DRAWS", 499)
    generator = np.random.Generator(np.random.Philox(9))
    over = objective(2, aggregation)
    false, covered = 0, 0
    for run in range(400):
        first, second = (scores(*(task(draw(generator), kind) for _ in "ab")) for _ in "ab")
        found = compare(first, second, over, seed=run)
        false += found.p < 0.05
        covered += found.low <= 0 <= found.high
    assert false <= 30  # 7.5 %: 5 % and what 400 runs may be off by
    assert covered >= 368


BALANCED, LOPSIDED = (0.5,) * 6, (0.5, *(0.8,) * 5)  # the worst tasks of both are equally good


@pytest.mark.parametrize(
    ("first_shares", "second_shares"), [(LOPSIDED, BALANCED), (BALANCED, LOPSIDED), (BALANCED, BALANCED)]
)
def test_the_smallest_of_many_tasks_keeps_its_level_whichever_model_has_its_tasks_tied(
    first_shares, second_shares, monkeypatch
):
    monkeypatch.setattr(bootstrap, "DRAWS", 499)
    generator = np.random.Generator(np.random.Philox(16))
    over, false, covered = objective(6, "min"), 0, 0
    for run in range(200):
        first, second = (
            scores(*(task(generator.random(100) < share) for share in shares))
            for shares in (first_shares, second_shares)
        )
        found = compare(first, second, over, seed=run)
        false += found.p < 0.05
        covered += found.low <= 0 <= found.high
    assert false <= 16  # 8 %: 5 % and what 200 runs may be off by
    assert covered == 200 - false


def test_the_smallest_of_many_tasks_that_is_larger_is_told_and_so_are_the_items_that_it_needs():
    generator = np.random.Generator(np.random.Philox(17))
    first, second, near = (
        scores(*(task(generator.random(300) < share) for _ in range(6))) for share in (0.7, 0.4, 0.6)
    )
    over = objective(6, "min")
    found = compare(first, second, over)
    assert found.p < 1e-6
    assert 0 < found.low < found.difference < found.high
    assert found.items_needed(0.05) < found.items
    assert compare(first, near, over).items_needed(0.05) > found.items_needed(0.05)


def test_the_smallest_of_many_tasks_is_equivalent_only_within_a_wide_enough_margin():
    generator = np.random.Generator(np.random.Philox(18))
    first, second = (scores(*(task(generator.random(400) < 0.5) for _ in range(6))) for _ in "ab")
    wide, narrow = (
        paired_difference(first, second, objective(6, "min"), seed=0, margin=margin).equivalence_p
        for margin in (0.3, 0.03)
    )
    assert wide < 0.001
    assert narrow > 0.05


def test_the_bootstrap_calls_models_that_differ_by_the_margin_equivalent_as_rarely_as_its_level(monkeypatch):
    monkeypatch.setattr(bootstrap, "DRAWS", 499)
    generator = np.random.Generator(np.random.Philox(12))
    over, margin, false, found = objective(2), 1.0, 0, 0
    for run in range(400):
        first, second, twin = (scores(*(task(generator.normal(size=25)) for _ in "ab")) for _ in range(3))
        worse = scores(*(task(np.array(each.outcomes) - margin) for each in second.tasks.values()))
        false += paired_difference(first, worse, over, seed=run, margin=margin).equivalence_p < 0.05
        found += paired_difference(first, twin, over, seed=run, margin=margin).equivalence_p < 0.05
    assert false <= 30  # 7.5 %: 5 % and what 400 runs may be off by
    assert found >= 380


def test_few_real_valued_outcomes_that_differ_show_no_equivalence():
    first, second = [0.5] * 40, [0.5] * 35 + [0.4] * 5
    found = paired_difference(scores(task(first)), scores(task(second)), objective(), seed=0, margin=0.5)
    assert (found.test, found.equivalence_p) == ("paired bootstrap", None)


def test_differences_that_no_resample_shows_have_a_p_value_as_small_as_the_items_allow():
    generator = np.random.Generator(np.random.Philox(14))
    base = generator.normal(size=400)
    first, second = scores(task(base + generator.normal(0.4, 1.0, 400))), scores(task(base))
    found = paired_difference(first, second, objective(), seed=0, margin=1.0)
    exact = ttest_rel(first.tasks["task_0"].outcomes, base).pvalue
    assert 0 < exact < 1e-6
    assert exact / 3 < found.p < exact * 3
    assert 0 < found.equivalence_p < 1e-9
    few = compare(scores(task(base[:8] + 100)), scores(task(base[:8] + generator.normal(size=8))))
    assert few.p > 0.001


def test_a_median_shows_no_p_value_below_its_resamples():
    generator = np.random.Generator(np.random.Philox(15))
    first, second = (scores(task(generator.random(400) < share, "median")) for share in (0.7, 0.3))
    assert compare(first, second).p == pytest.approx(2 / (1 + bootstrap.DRAWS), rel=0.2)
