"""Every fidelity scores a candidate on all items unless it drops it, and tells a collapsed one by NaN."""

import math
from itertools import pairwise

import pytest

from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.objective import Objective
from evomerge.racing import InterimLook, build_fidelity
from evomerge.spec import FidelitySpec

ITEMS = 400
OBJECTIVE = Objective(aggregate="weighted_mean", weights={"task": 1.0})
NAMES = ("full", "race", "successive_halving", "hyperband")


def scores(outcomes):
    task = TaskScores(
        metric="acc",
        higher_is_better=True,
        items=tuple(range(len(outcomes))),
        outcomes=tuple(outcomes),
        value=sum(outcomes) / len(outcomes),
        stderr=0.1,
        aggregate="mean",
    )
    return Scores({"task": task}, {})


@pytest.fixture(params=NAMES)
def fidelity(request):
    return build_fidelity(FidelitySpec(name=request.param), OBJECTIVE, [scores([1.0, 0.0] * (ITEMS // 2))])


def test_the_blocks_of_a_trial_are_all_items_once(fidelity):
    for trial in range(20):
        bounds = [block.positions(ITEMS) for block in fidelity.blocks(trial)]
        assert bounds[0][0] == 0
        assert bounds[-1][1] in (ITEMS, None)
        assert all(stop == start for (_, stop), (start, _) in pairwise(bounds))


def test_nothing_is_dropped_before_there_is_an_incumbent(fidelity):
    result = fidelity.look(InterimLook(trial=0, seen=scores([0.0, 1.0] * 100)))
    assert (result.drop, result.estimate) == (False, 0.5)


def test_only_full_needs_no_incumbent(fidelity):
    assert fidelity.needs_incumbent == (len(fidelity.blocks(0)) > 1)


@pytest.mark.parametrize("name", NAMES)
def test_scores_that_allow_no_objective_have_no_estimate(name):
    task = scores([1.0, 0.0] * (ITEMS // 2)).tasks["task"]
    both = Scores({"first": task, "second": task}, {})
    overflowing = Objective(aggregate="weighted_mean", weights={"first": math.inf, "second": -math.inf})
    fidelity = build_fidelity(FidelitySpec(name=name), overflowing, [both])
    assert math.isnan(fidelity.look(InterimLook(trial=0, seen=both)).estimate)
