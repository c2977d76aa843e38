"""The random-forest sampler: the contract, the data that its forest is fitted to, and log EI by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy import integrate, stats

from evomerge.errors import InvalidInput
from evomerge.samplers import build_sampler
from evomerge.samplers.acquisition import log_expected_improvement, log_scaled
from evomerge.samplers.forest import Forest, ForestSampler, values_by_items
from evomerge.storage.attributes import INFEASIBLE, RUNGS, TELL
from evomerge.testing.sampler_contract import CONDITIONAL, SamplerContract, Space, ask, box, loss, run, tell


class TestForest(SamplerContract):
    name = "forest"
    settings = {"n_startup_trials": 6}  # noqa: RUF012
    trials = 16

    def test_learns_numbers_and_conditional_choices(self) -> None:
        for space in (box(3), CONDITIONAL):
            study = optuna.create_study(sampler=self.sampler(space))
            losses = [loss(params) for params in run(study, space, 40)]
            assert np.median(losses[25:]) < 0.5 * np.median(losses[:6])


def forest_sampler(space: Space, **settings: Any) -> ForestSampler:
    sampler = build_sampler("forest", settings, seed=3, space=space, workers=1)
    assert isinstance(sampler, ForestSampler)
    return sampler


def scored(
    x: float, value: float | None, rungs: dict[int, float], state: TrialState = TrialState.COMPLETE
) -> FrozenTrial:
    attributes: dict[str, Any] = {TELL: 0}
    if rungs:
        attributes[RUNGS] = {str(items): at_rung for items, at_rung in rungs.items()}
    return create_trial(
        value=value, state=state, params={"x00": x}, distributions=box(1).distributions, user_attrs=attributes
    )


def test_a_trial_has_a_value_at_each_rung_and_a_complete_one_also_on_all_items() -> None:
    assert values_by_items(scored(0.1, 0.7, {9: 0.5, 27: 0.6})) == {9: 0.5, 27: 0.6, math.inf: 0.7}
    # What a dropped trial ends with is an estimate on all items, beside which its rungs are the plain values.
    dropped = scored(0.1, 0.65, {9: 0.4}, TrialState.PRUNED)
    assert values_by_items(dropped) == {9: 0.4}
    assert values_by_items(scored(0.1, 0.65, {}, TrialState.PRUNED)) == {math.inf: 0.65}


def test_a_forest_is_fitted_to_the_most_items_that_enough_trials_were_scored_on() -> None:
    space = box(1)
    sampler = forest_sampler(space, n_startup_trials=3)
    study = optuna.create_study(direction="maximize", sampler=sampler)

    def costs() -> list[float] | None:
        known = sampler._known(study, study.get_trials())
        return None if known is None else known[1].tolist()

    study.add_trials([scored(0.1, 0.1, {9: 0.2}, TrialState.PRUNED), scored(0.2, 0.3, {9: 0.4, 27: 0.5})])
    assert costs() is None
    study.add_trial(scored(0.3, 0.6, {9: 0.7, 27: 0.8}))
    assert costs() == [-0.2, -0.4, -0.7]
    study.add_trial(scored(0.4, 0.1, {9: 0.3, 27: 0.2}, TrialState.PRUNED))
    assert costs() == [-0.5, -0.8, -0.2]
    study.add_trial(scored(0.5, 0.9, {}))  # before there was an incumbent
    assert costs() == [-0.3, -0.6, -0.9]


def test_a_refused_proposal_costs_as_much_as_the_worst_one_and_another_failure_teaches_nothing() -> None:
    space = box(1)
    sampler = forest_sampler(space, n_startup_trials=2)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials([scored(0.1, 0.4, {}), scored(0.2, 0.9, {}), scored(0.3, None, {}, TrialState.FAIL)])
    refused = scored(0.8, None, {}, TrialState.FAIL)
    refused.user_attrs[INFEASIBLE] = 2.0
    study.add_trial(refused)
    known = sampler._known(study, study.get_trials())
    assert known is not None
    assert known[0][:, 0].tolist() == [0.1, 0.2, 0.8]
    assert known[1].tolist() == [-0.4, -0.9, -0.4]


def test_proposals_follow_the_rung_with_enough_values_and_not_the_estimates() -> None:
    space = box(1)
    sampler = forest_sampler(space, n_startup_trials=10, random_share=1e-9)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for number in range(20):
        x = (number + 0.5) / 20
        study.add_trial(scored(x, 1 - x, {9: -abs(x - 0.8)}, TrialState.PRUNED))
    assert abs(ask(study, space).params["x00"] - 0.8) < 0.1


def test_nothing_is_proposed_twice_while_there_is_something_new() -> None:
    space = Space({"choice": optuna.distributions.CategoricalDistribution(tuple("abcdefgh"))}, {"choice": "a"})
    study = optuna.create_study(sampler=forest_sampler(space, n_startup_trials=2, random_share=1e-9))
    for number, choice in enumerate("ab"):
        study.enqueue_trial({"choice": choice})
        tell(study, ask(study, space), float(number), number)
    asked = [params["choice"] for params in run(study, space, 6)]
    assert sorted(asked) == list("cdefgh")
    assert run(study, space, 1)[0]["choice"] in "abcdefgh"


def test_a_parameter_that_does_not_exist_does_not_matter() -> None:
    sampler = forest_sampler(CONDITIONAL)
    linear = [{"method": "linear", "linear.weight": 0.25, "ties.weight": weight} for weight in (0.1, 1.9)]
    points = np.array([sampler._cube.encode({**sampler._fill, **params}) for params in linear])
    first, second = sampler._features(points).tolist()
    assert first == second
    assert first == [1.0, 0.0, 0.25, -1.0, -1.0]


def test_log_expected_improvement_is_the_integral_that_defines_it() -> None:
    for mean, deviation, best in ((-1.0, 0.5, -1.2), (0.3, 1.0, -0.5), (-2.0, 0.1, -1.0)):
        density = stats.norm(mean, deviation).pdf
        expected, _ = integrate.quad(lambda y: (math.exp(best) - math.exp(y)) * density(y), mean - 12, best)  # noqa: B023
        found = log_expected_improvement(np.array([mean]), np.array([deviation**2]), best)
        assert found[0] == pytest.approx(expected, rel=1e-6)
    assert log_expected_improvement(np.array([-1.0]), np.array([0.0]), -0.5)[0] == pytest.approx(
        math.exp(-0.5) - math.exp(-1.0), rel=1e-4
    )


def test_scaled_costs_are_logarithms_of_shares_of_the_range() -> None:
    costs = np.linspace(0, 100, 101)  # the 5th percentile is 5: the zero of the scale is at -5
    assert log_scaled(costs)[[0, 40, 100]] == pytest.approx(np.log([5 / 105, 45 / 105, 1.0]))
    assert log_scaled(np.array([2.0, 2.0])).tolist() == [0.0, 0.0]
    assert log_scaled(-3 + 0.25 * costs) == pytest.approx(log_scaled(costs))
    assert np.isfinite(log_scaled(np.array([1.0] * 30 + [2.0]))).all()


def test_a_forest_varies_where_its_trees_disagree() -> None:
    features = np.array([[0.1], [0.2], [0.8], [0.9]])
    forest = Forest(features, np.array([-2.0, -2.0, -0.1, -0.1]), trees=30, seed=1)
    near, between, far = forest.improvement(np.array([[0.15], [0.5], [0.85]]))
    assert between > near
    assert between > far


def test_several_objectives_are_refused() -> None:
    with pytest.raises(InvalidInput, match="the sampler forest optimises one objective"):
        build_sampler("forest", {}, seed=1, space=box(2), workers=1, directions=2)
