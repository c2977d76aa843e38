"""The procedure as a whole, selection of the winner included, on simulated searches with fixed seeds."""

import numpy as np
import pytest
from simulated_answers import answers, looked, said, searched

from evomerge.evaluation import Candidate, ItemBlock
from evomerge.evaluation.synthetic import SyntheticEvaluator
from evomerge.objective import Objective
from evomerge.recipe import ModelRef, Recipe
from evomerge.verdict import Entrant, judge

RUNS = 1000


def beaten(verdict):
    return [each.baseline for each in verdict.comparisons if each.outcome == "beats"]


def test_the_simulated_models_differ_as_they_are_told_to():
    right = answers(np.random.Generator(np.random.Philox(1)), [0.025, -0.025], 1_000_000, 0.2)
    assert right.mean(axis=1) == pytest.approx([0.525, 0.475], abs=0.002)
    assert (right[0] != right[1]).mean() == pytest.approx(0.2, abs=0.002)


@pytest.mark.parametrize("discordant", [0.2, 0.5])
def test_without_a_true_difference_a_win_is_claimed_in_at_most_65_of_1000_runs(discordant):
    assert sum(bool(beaten(searched(seed, discordant=discordant))) for seed in range(RUNS)) <= 65


def test_a_true_difference_of_5_points_is_found_in_at_least_80_percent():
    """With 1,000 paired items of which 20 % are discordant, and Holm over 4 baselines.

    The hardest case: the three others are as good as the winner, so that only p-values below 0.05 / 4 count.
    """
    edges = (-0.025, 0.025, 0.025, 0.025)
    found = [beaten(searched(seed, edge=0.025, baseline_edges=edges)) for seed in range(RUNS)]
    assert sum("baseline 0" in each for each in found) >= 0.8 * RUNS
    assert sum(bool({"baseline 1", "baseline 2", "baseline 3"} & set(each)) for each in found) <= 65


def test_a_true_difference_from_all_baselines_is_found_from_each_of_them():
    found = [beaten(searched(seed, edge=0.025, baseline_edges=(-0.025,) * 4)) for seed in range(RUNS)]
    for number in range(4):
        assert sum(f"baseline {number}" in each for each in found) >= 0.8 * RUNS


def test_the_lead_of_a_search_among_equals_is_called_luck_or_is_none():
    verdicts = [searched(seed, candidates=100) for seed in range(300)]
    called = sum("luck" in verdict.sentence for verdict in verdicts)
    none = sum("nothing better than" in verdict.sentence for verdict in verdicts)
    assert called + none >= 0.93 * len(verdicts)
    assert sum(verdict.lead.luck for verdict in verdicts) > 0.5 * len(verdicts)
    assert np.mean([verdict.luck for verdict in verdicts]) > 0.02  # points that selection made up


def test_the_luck_of_a_real_difference_is_not_called_so():
    verdicts = [searched(seed, edge=0.05, baseline_edges=(-0.05,) * 4) for seed in range(100)]
    assert sum("luck" in verdict.sentence for verdict in verdicts) <= 2


def test_who_looks_until_he_wins_wins_falsely_in_at_most_5_percent():
    found = [looked(seed, looks=6, discordant=0.3) for seed in range(300)]
    assert sum(said(looks, "beats") for looks in found) <= 0.065 * len(found)
    uncorrected = [
        any(each.difference > 0 and each.p < 0.05 / 4 for comparisons in looks for each in comparisons)
        for looks in found
    ]
    assert sum(uncorrected) > 0.08 * len(found)  # what the correction for looks is for


def test_who_looks_until_a_model_is_equivalent_is_told_so_falsely_in_at_most_5_percent():
    worse = [looked(seed, looks=6, edge=-0.03, margin=0.03, discordant=0.06) for seed in range(300)]
    assert sum(said(looks, "equivalent") for looks in worse) <= 0.065 * len(worse)
    assert sum(said(looks, "beats") for looks in worse) == 0


def test_a_twin_is_called_equivalent_at_the_first_look_in_at_least_80_percent():
    found = [looked(seed, looks=1, margin=0.03, discordant=0.05) for seed in range(200)]
    each = [comparison.outcome == "equivalent" for looks in found for comparison in looks[0]]
    assert sum(each) >= 0.8 * len(each)


RECIPES = [
    Recipe(base=ModelRef("base", f"/nowhere/{number}"), sources=(ModelRef("a", "/nowhere"),), rules=(), dtype="float32")
    for number in range(6)
]


def noise_search(seed):
    """A search of 60 trials whose evaluator is noise, and its verdict against 4 baselines."""
    evaluator = SyntheticEvaluator({"function": "noise", "items": 500}, bounds={"a": (0.0, 1.0)}, seed=seed)
    objective = Objective(aggregate="weighted_mean", weights=evaluator.weights)

    def score(params, recipe, part):
        return evaluator.score(Candidate(key="x", params=params, recipe=recipe, model=lambda: None), ItemBlock(part))

    def value(params, recipe):
        return objective.value(score(params, recipe, "search"))

    trials = [{"a": (number + 0.5) / 60} for number in range(60)]
    values = [value(params, RECIPES[0]) for params in trials]
    winner = int(np.argmax(values))
    best = Entrant(
        label=f"trial {winner}", held_out=score(trials[winner], RECIPES[0], "held_out"), search=values[winner]
    )
    baselines = [
        Entrant(label=f"baseline {number}", held_out=score({}, recipe, "held_out"), search=value({}, recipe))
        for number, recipe in enumerate(RECIPES[1:5])
    ]
    searched_on = sum(map(len, evaluator.split.parts["search"].values()))
    return judge(objective, best, winner, baselines, trials=len(trials), search_items=searched_on)


def test_a_search_whose_candidates_are_noise_is_called_luck():
    verdicts = [noise_search(seed) for seed in range(4)]
    assert all(verdict.lead.search > 0 for verdict in verdicts)
    assert all("luck" in verdict.sentence for verdict in verdicts)
    assert not any(beaten(verdict) for verdict in verdicts)
    assert any(verdict.lead.luck for verdict in verdicts)


def test_noise_is_a_coin_per_candidate_and_item():
    evaluator = SyntheticEvaluator({"function": "noise", "items": 4000, "tasks": 1}, seed=1)

    def outcomes(params, recipe=RECIPES[0]):
        candidate = Candidate(key="x", params=params, recipe=recipe, model=lambda: None)
        return np.array(evaluator.score(candidate, ItemBlock("held_out")).tasks["task_0"].outcomes)

    rows = [outcomes({"method": "a"}), outcomes({"method": "b"}), outcomes({}), outcomes({}, RECIPES[1])]
    assert np.abs(np.mean(rows, axis=1) - 0.5).max() < 0.04
    assert np.abs(np.corrcoef(rows) - np.eye(4)).max() < 0.08
    assert (outcomes({"method": "a"}) == rows[0]).all()
