"""The objective: every task counts, more is better, and the scale is the sources' own where it is asked for."""

import numpy as np
import pytest

from evomerge.errors import InvalidInput
from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.objective import Collapsed, build_objective
from evomerge.spec import ObjectiveSpec


def scores(higher_is_better=None, stderr=0.03, **values):
    directions = higher_is_better or {}
    return Scores(
        {
            task: TaskScores(
                metric="metric",
                higher_is_better=directions.get(task, True),
                items=(0, 1),
                outcomes=(0.0, 1.0),
                value=value,
                stderr=stderr,
            )
            for task, value in values.items()
        },
        {},
    )


WEIGHTS = {"easy": 1.0, "hard": 3.0}


def objective(sources=None, **spec):
    return build_objective(ObjectiveSpec(**spec), WEIGHTS, sources or [scores(easy=0.5, hard=0.5)])


def test_the_weighted_mean_uses_the_weights_of_the_pack_unless_the_spec_says_otherwise():
    assert objective().value(scores(easy=0.8, hard=0.4)) == pytest.approx(0.5)
    assert objective(weights={"hard": 1.0}).value(scores(easy=0.8, hard=0.4)) == pytest.approx(0.6)


def test_min_is_the_worst_task_and_the_geometric_mean_punishes_imbalance():
    assert objective(aggregate="min").value(scores(easy=0.8, hard=0.4)) == 0.4
    value = objective(aggregate="geometric_mean", weights={"hard": 1.0}).value(scores(easy=0.8, hard=0.2))
    assert value == pytest.approx(0.4)
    assert objective(aggregate="geometric_mean").value(scores(easy=0.0, hard=1.0)) == 0.0


def test_n16_a_metric_that_shall_be_low_is_minimised_without_a_negative_weight():
    low = {"hard": False}
    better, worse = scores(low, easy=0.5, hard=3.0), scores(low, easy=0.5, hard=9.0)
    assert objective().value(better) > objective().value(worse)
    normalised = objective([scores(low, easy=0.4, hard=10.0), scores(low, easy=0.6, hard=2.0)], normalise="sources")
    assert normalised.value(scores(low, easy=0.6, hard=2.0)) == pytest.approx(1.0)
    assert normalised.value(scores(low, easy=0.4, hard=10.0)) == pytest.approx(0.0)
    assert normalised.value(better) > normalised.value(worse)


def test_n16_every_task_of_the_objective_counts():
    for aggregate in ("weighted_mean", "geometric_mean"):
        lower = objective(aggregate=aggregate).value(scores(easy=0.5, hard=0.5))
        assert objective(aggregate=aggregate).value(scores(easy=0.6, hard=0.5)) > lower
        assert objective(aggregate=aggregate).value(scores(easy=0.5, hard=0.6)) > lower


def test_normalised_scores_run_from_the_sources_worst_to_their_best():
    sources = [scores(easy=0.2, hard=0.9), scores(easy=0.6, hard=0.1)]
    value = objective(sources, normalise="sources", weights={"hard": 1.0}).value(scores(easy=0.4, hard=0.9))
    assert value == pytest.approx((0.5 + 1.0) / 2)


def test_a_task_on_which_all_sources_are_equal_has_no_scale():
    with pytest.raises(InvalidInput, match=r"all sources score 0\.5 on task 'easy'"):
        objective([scores(easy=0.5, hard=0.1), scores(easy=0.5, hard=0.2)], normalise="sources")


def test_a_geometric_mean_of_what_shall_be_low_is_refused():
    with pytest.raises(InvalidInput, match="task 'hard' shall be low"):
        objective([scores({"hard": False}, easy=0.5, hard=3.0)], aggregate="geometric_mean")


def test_a_candidate_that_collapsed_has_a_finite_standard_error():
    assert objective().stderr(scores(stderr=1e200, easy=0.5, hard=1e200)) > 1e199


def test_the_standard_error_follows_from_those_of_the_tasks():
    both = scores(easy=0.8, hard=0.4)
    assert objective().stderr(both) == pytest.approx(0.03 * (0.25**2 + 0.75**2) ** 0.5)
    assert objective(aggregate="min").stderr(both) == pytest.approx(0.03)
    geometric = objective(aggregate="geometric_mean", weights={"hard": 1.0})
    value = geometric.value(both)
    assert geometric.stderr(both) == pytest.approx(0.03 * value / 2 * (1 / 0.8**2 + 1 / 0.4**2) ** 0.5)
    scaled = objective([scores(easy=0.0, hard=0.0), scores(easy=0.5, hard=0.5)], normalise="sources")
    assert scaled.stderr(both) == pytest.approx(2 * 0.03 * (0.25**2 + 0.75**2) ** 0.5)
    assert objective().stderr(scores(stderr=None, easy=0.8, hard=0.4)) is None


def test_many_samples_at_once_have_the_values_of_each():
    low = {"hard": False}
    sources = [scores(low, easy=0.4, hard=10.0), scores(low, easy=0.6, hard=2.0)]
    samples = [(0.5, 3.0), (0.7, 9.0), (0.3, 2.0)]
    for spec in (
        {},
        {"aggregate": "min"},
        {"normalise": "sources"},
        {"aggregate": "min", "normalise": "sources"},
        {"aggregate": "geometric_mean", "normalise": "sources"},
    ):
        over = objective(sources, **spec)
        values = over.values(sources[0], dict(zip(WEIGHTS, map(np.array, zip(*samples, strict=True)), strict=True)))
        assert values == pytest.approx([over.value(scores(low, easy=easy, hard=hard)) for easy, hard in samples])


def test_the_gain_per_unit_of_a_task_is_the_same_everywhere_for_a_weighted_mean_only():
    low = {"hard": False}
    assert objective().gains(scores(low, easy=0.5, hard=3.0)) == {"easy": 0.25, "hard": -0.75}
    sources = [scores(low, easy=0.4, hard=10.0), scores(low, easy=0.6, hard=2.0)]
    scaled = objective(sources, normalise="sources").gains(sources[0])
    assert scaled == pytest.approx({"easy": 0.25 / 0.2, "hard": -0.75 / 8})
    assert objective(aggregate="min").gains(scores(easy=0.5, hard=0.5)) is None
    assert objective(aggregate="geometric_mean").gains(scores(easy=0.5, hard=0.5)) is None


def test_the_companion_is_the_weighted_mean_log_probability_of_right_answers_where_a_task_has_them():
    def task(gold):
        return TaskScores(
            metric="metric", higher_is_better=True, items=(0, 1), outcomes=(0.0, 1.0), value=0.5, stderr=None, gold=gold
        )

    both = Scores({"easy": task((-1.0, -3.0)), "hard": task((-4.0, -8.0))}, {})
    assert objective().companion(both) == pytest.approx((1.0 * -2.0 + 3.0 * -6.0) / 4.0)
    assert objective().companion(Scores({"easy": task((-1.0, -3.0)), "hard": task(None)}, {})) == -2.0
    assert objective().companion(scores(easy=0.5, hard=0.5)) is None


def test_an_assessment_has_all_that_a_study_stores_of_a_candidate():
    assessed = objective(
        aggregate="pareto", constraints=[{"task": "hard", "at_least": 0.3}], weights={"hard": 1.0}
    ).assess(scores(easy=0.8, hard=0.4))
    assert assessed.value == pytest.approx(0.6)
    assert assessed.objectives == (0.8, 0.4)
    assert assessed.violations == (pytest.approx(-0.1),)
    assert assessed.is_feasible
    assert assessed.stderr == pytest.approx(0.03 / np.sqrt(2))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"easy": np.nan, "hard": 0.5}, "task 'easy' scores nan"),
        ({"easy": -np.inf, "hard": 0.5}, "task 'easy' scores -inf"),
        ({"easy": np.inf, "hard": -np.inf}, "task 'easy' scores inf, task 'hard' scores -inf"),
        ({"easy": 1.7e308, "hard": 1.7e308}, "the objective is inf"),
    ],
)
def test_scores_without_a_finite_objective_are_a_failure_with_its_reason(values, reason):
    found = objective()
    assert found.assess(scores(**values)).reason.startswith(reason)
    assert not np.isfinite(found.value_or_nan(scores(**values)))


def test_a_constraint_that_cannot_be_measured_fails_the_candidate():
    found = objective(aggregate="min", constraints=[{"task": "hard", "at_least": 0.3}])
    assert found.assess(scores(easy=0.2, hard=np.inf)) == Collapsed("task 'hard' scores inf")


def test_a_dropped_candidate_is_assessed_by_its_estimate():
    found = objective().assess_dropped(scores(easy=0.8, hard=0.4), 0.45)
    assert (found.estimate, found.stderr) == (0.45, objective().stderr(scores(easy=0.8, hard=0.4)))
    assert objective().assess_dropped(scores(easy=0.8, hard=0.4), np.nan) == Collapsed("the objective is nan")
