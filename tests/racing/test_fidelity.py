"""Every fidelity scores a candidate on all items unless it drops it, and tells a collapsed one by NaN."""

import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest

from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.objective import Objective
from evomerge.packs.items import Split
from evomerge.racing import InterimLook, ItemHistory, build_fidelity
from evomerge.spec import FidelitySpec
from evomerge.study.race_defaults import CURRENT, RaceDefaults

ITEMS = 400
OBJECTIVE = Objective(aggregate="weighted_mean", weights={"task": 1.0})
NAMES = ("full", "race", "successive_halving", "hyperband")
RULES = (*({"name": name} for name in NAMES), {"name": "race", "estimator": "paired"})


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


def build(rule, objective=OBJECTIVE, references=None, race=CURRENT):
    return build_fidelity(
        FidelitySpec(**rule), objective, references or [scores([1.0, 0.0] * (ITEMS // 2))], race=race, seed=1
    )


@pytest.fixture(params=RULES, ids=str)
def fidelity(request):
    return build(request.param)


def test_the_blocks_of_a_trial_are_all_items_once(fidelity):
    for trial in range(20):
        bounds = [block.positions(ITEMS) for block in fidelity.blocks(trial)]
        assert bounds[0][0] == 0
        assert bounds[-1][1] in (ITEMS, None)
        assert all(stop == start for (_, stop), (start, _) in pairwise(bounds))


def of_sizes(sizes):
    """The scores of a candidate, on so many items of each task."""
    return Scores({f"task {number}": scores([1.0, 0.0] * size).tasks["task"] for number, size in enumerate(sizes)}, {})


@pytest.mark.parametrize("name", ["race", "successive_halving", "hyperband"])
def test_every_block_has_items_and_only_the_last_one_completes_a_candidate(name):
    luck = random.Random(3)
    for _ in range(200):
        reference = of_sizes([luck.randint(1, 20) for _ in range(luck.randint(1, 12))])
        sizes = [len(task.items) for task in reference.tasks.values()]
        rule = {"name": name, "minimum": luck.randint(1, 100), "block": luck.randint(1, 100), "estimator": "paired"}
        if name != "race":
            rule = {"name": name, "minimum": rule["minimum"], "eta": luck.randint(2, 4)}
        objective = Objective(aggregate="weighted_mean", weights=dict.fromkeys(reference.tasks, 1.0))
        fidelity = build(rule, objective, [reference])
        for trial in range(10):
            stops = [[block.positions(size)[1] for size in sizes] for block in fidelity.blocks(trial)]
            assert all(sum(stop) > sum(before) for before, stop in pairwise([[0], *stops]))
            assert stops.index(sizes) == len(stops) - 1


def test_nothing_is_dropped_before_there_is_an_incumbent(fidelity):
    result = fidelity.look(InterimLook(trial=0, seen=scores([0.0, 1.0] * 100)))
    assert (result.drop, result.estimate) == (False, 0.5)


def test_candidates_are_compared_with_an_incumbent_wherever_some_may_be_dropped(fidelity):
    draw = fidelity.draw(3, scores([1.0, 0.0] * (ITEMS // 2)), ItemHistory())
    blocks = fidelity.blocks(3) if draw is None else draw.blocks
    assert fidelity.needs_incumbent == (len(blocks) > 1)
    assert fidelity.needs_history == (draw is not None)


def on(outcomes, chosen):
    """The scores on these items of each task; `own` has an aggregate of its own, which is a mean."""
    tasks = {}
    for task, ids in chosen.items():
        found = scores([outcomes[task][item] for item in ids]).tasks["task"]
        tasks[task] = replace(found, items=tuple(ids), aggregate="custom" if task == "own" else "mean")
    return Scores(tasks, {})


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule["name"] != "full"], ids=str)
def test_a_better_candidate_survives_an_incumbent_whose_items_are_alike_under_a_tasks_own_mean(rule):
    luck, every = random.Random(4), {"own": range(300), "other": range(300)}

    def drawn(own, other):
        return {"own": [float(luck.random() < own) for _ in range(300)], "other": [other] * 300}

    outcomes = drawn(0.9, 0.6)
    source, incumbent, candidate = on(drawn(0.3, 0.65), every), on(drawn(0.0, 0.7), every), on(outcomes, every)
    objective = Objective(aggregate="weighted_mean", weights={"own": 1.0, "other": 1.0})
    fidelity = build(rule, objective, [incumbent, source])
    draw = fidelity.draw(3, incumbent, ItemHistory([source, incumbent]))
    split = Split({"search": {task: tuple(ids) for task, ids in every.items()}}, {})
    seen, earlier = {"own": [], "other": []}, []
    for block in fidelity.blocks(3) if draw is None else draw.blocks:
        for task, ids in split.items(block).items():
            seen[task] += ids
        result = fidelity.look(
            InterimLook(trial=3, seen=on(outcomes, seen), earlier=tuple(earlier), incumbent=incumbent, draw=draw)
        )
        assert not result.drop
        earlier.append({task: len(ids) for task, ids in seen.items()})
    assert result.estimate == pytest.approx(objective.value(candidate))


def test_nothing_is_drawn_before_there_is_an_incumbent(fidelity):
    assert fidelity.draw(0, None, ItemHistory()) is None


def test_a_race_that_leaves_it_open_is_that_of_its_study():
    incumbent = scores([1.0, 0.0] * (ITEMS // 2))
    old = build({"name": "race"}, race=RaceDefaults())
    assert old.draw(3, incumbent, ItemHistory()) is None
    assert old.blocks(3) == build({"name": "race", "estimator": "paired"}).blocks(3)
    assert build({"name": "race"}).draw(3, incumbent, ItemHistory()) is not None


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_scores_that_allow_no_objective_have_no_estimate(rule):
    task = scores([1.0, 0.0] * (ITEMS // 2)).tasks["task"]
    both = Scores({"first": task, "second": task}, {})
    overflowing = Objective(aggregate="weighted_mean", weights={"first": math.inf, "second": -math.inf})
    fidelity = build(rule, overflowing, [both])
    assert math.isnan(fidelity.look(InterimLook(trial=0, seen=both)).estimate)
