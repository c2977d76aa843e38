"""CMA-ES for several objectives: it betters known merges on all of them, and resumes as if nothing had happened."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from evomerge.errors import InvalidInput
from evomerge.samplers import build_sampler
from evomerge.samplers.reference_points import (
    ReferencePoint,
    ReferencePointSampler,
    read_reference_points,
    write_reference_points,
)
from evomerge.storage.attributes import TELL
from evomerge.testing.sampler_contract import (
    CATEGORIES,
    CONDITIONAL,
    NUMBERS,
    Space,
    ask,
    box,
    crash_in_ask,
    loss,
    proposed,
)

SPACE = box(6)
OBJECTIVES = 4
MIDDLE = dict.fromkeys(SPACE.distributions, 0.5)
CORNER = dict.fromkeys(SPACE.distributions, 0.9)


def peaks() -> np.ndarray:
    """Where each objective is at its best: corners of a small box, so that there is a front between them."""
    return 0.55 + 0.2 * np.random.default_rng(0).uniform(-1.0, 1.0, size=(OBJECTIVES, len(SPACE.distributions)))


def values(params: dict[str, Any]) -> list[float]:
    """Coarse, as the share of 200 items is."""
    point = np.array([float(value) for value in params.values()])
    return [round(200 * float(np.exp(-np.sum((point - peak) ** 2)))) / 200 for peak in peaks()]


def goal(params: dict[str, float], *, known: bool = True) -> ReferencePoint:
    return ReferencePoint(tuple(values(params)), params if known else None)


GOALS = (goal(CORNER), goal(MIDDLE), goal({**MIDDLE, "x00": 0.4}, known=False))


def new_study(*goals: ReferencePoint, workers: int = 1, space: Space = SPACE) -> optuna.Study:
    sampler = build_sampler("cma", {}, seed=5, space=space, workers=workers, directions=OBJECTIVES)
    study = optuna.create_study(directions=["maximize"] * OBJECTIVES, sampler=sampler)
    write_reference_points(study, goals or GOALS)
    return study


def rebuild(study: optuna.Study, workers: int = 1, space: Space = SPACE) -> None:
    study.sampler = build_sampler("cma", {}, seed=5, space=space, workers=workers, directions=OBJECTIVES)


def go_on(study: optuna.Study, n: int, space: Space = SPACE) -> None:
    for _ in range(n):
        trial = ask(study, space)
        trial.set_user_attr(TELL, trial.number)
        study.tell(trial, values(trial.params) if space is SPACE else [loss(trial.params)] * OBJECTIVES)


def dominating(study: optuna.Study, than: ReferencePoint) -> list[int]:
    return [
        trial.number
        for trial in study.get_trials(states=(TrialState.COMPLETE,))
        if all(a >= b for a, b in zip(trial.values, than.values, strict=True)) and tuple(trial.values) != than.values
    ]


def test_every_goal_is_bettered_on_all_objectives_where_nsgaii_betters_the_easy_one() -> None:
    study = new_study()
    go_on(study, 120)
    assert all(dominating(study, each) for each in GOALS)
    assert isinstance(study.sampler, ReferencePointSampler)
    assert study.sampler.dominated(study) == (True, True, True)
    genetic = build_sampler("nsgaii", {"population_size": 20}, seed=5, space=SPACE, workers=1, directions=OBJECTIVES)
    other = optuna.create_study(directions=["maximize"] * OBJECTIVES, sampler=genetic)
    go_on(other, 120)
    assert [bool(dominating(other, each)) for each in GOALS] == [True, False, False]


def test_proposals_go_to_the_goals_that_are_not_dominated_yet() -> None:
    unreachable = ReferencePoint((2.0,) * OBJECTIVES, CORNER)
    study = new_study(goal(MIDDLE, known=False), unreachable)
    write_reference_points(
        study, (ReferencePoint((-1.0,) * OBJECTIVES), unreachable)
    )  # the first is dominated by any result
    go_on(study, 12)
    distances = [max(abs(value - 0.9) for value in trial.params.values()) for trial in study.trials]
    assert distances[0] > 0.2  # from the centre, with long steps
    assert max(distances[1:]) < 0.15  # from the goal, with short ones


def test_a_result_teaches_every_search_that_could_have_drawn_it() -> None:
    far = ReferencePoint((2.0,) * OBJECTIVES, CORNER)
    study = new_study(ReferencePoint((2.0,) * OBJECTIVES), ReferencePoint((2.0,) * OBJECTIVES), far)
    go_on(study, 13)  # alternately, the third begins at ordinal 2
    sampler = study.sampler
    assert isinstance(sampler, ReferencePointSampler)
    sampler.dominated(study)
    learned = [search.evolution.waiting + search.evolution.generation * sampler.popsize for search in sampler._searches]
    assert learned[0] == learned[1] >= 9  # what the two from the centre drew, at least
    assert 4 <= learned[2] < 9  # its own


@pytest.mark.parametrize("space", [SPACE, NUMBERS], ids=["box", "numbers"])
def test_a_resumed_study_continues_as_the_uninterrupted_one(space: Space) -> None:
    goals = (
        GOALS
        if space is SPACE
        else (ReferencePoint((9.0,) * OBJECTIVES), ReferencePoint((3.0,) * OBJECTIVES, dict(NUMBERS.centre)))
    )
    whole = new_study(*goals, space=space)
    go_on(whole, 40, space)
    pieces = new_study(*goals, space=space)
    for n in (1, 12, 9, 1, 17):
        crash_in_ask(pieces, space)
        rebuild(pieces, space=space)
        go_on(pieces, n, space)
    assert proposed(pieces, space) == [trial.params for trial in whole.trials]


def simulate(workers: int, trials: int, seed: int, kills: set[int]) -> list[Any]:
    """Workers that do not wait for each other; the controller dies before the results that `kills` numbers."""
    durations = np.random.default_rng(seed)
    study = new_study(workers=workers)
    running: list[tuple[float, int, optuna.Trial]] = []
    clock, asked = 0.0, 0
    for told in range(trials):
        while len(running) < workers and asked < trials:
            trial = ask(study, SPACE)
            heapq.heappush(running, (clock + durations.lognormal(0.0, 0.3), trial.number, trial))
            asked += 1
        if told in kills:
            rebuild(study, workers)
        clock, _, trial = heapq.heappop(running)
        trial.set_user_attr(TELL, told)
        study.tell(trial, values(trial.params))
    return [trial.params for trial in study.trials]


@hypothesis_settings(deadline=None, max_examples=20)
@given(st.sampled_from([1, 3, 8, 32]), st.integers(0, 2**31), st.sets(st.integers(0, 59), max_size=5))
def test_kills_at_any_instant_change_no_proposal(workers: int, seed: int, kills: set[int]) -> None:
    assert simulate(workers, 60, seed, kills) == simulate(workers, 60, seed, set())


def test_what_cannot_be_learned_from_is_passed_over() -> None:
    study = new_study()
    study.add_trial(optuna.create_trial(values=[1.0] * OBJECTIVES))  # without params
    study.tell(ask(study, SPACE), state=TrialState.FAIL)
    go_on(study, 5)
    assert len(proposed(study, SPACE)) == 6


def test_directions_may_be_mixed() -> None:
    sampler = build_sampler("cma", {}, seed=1, space=SPACE, workers=1, directions=2)
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
    write_reference_points(study, [ReferencePoint((0.3, 0.2), MIDDLE)])
    for _ in range(60):
        trial = ask(study, SPACE)
        first, second, *_ = values(trial.params)
        study.tell(trial, [1 - first, second])
    assert any(trial.values[0] < 0.3 and trial.values[1] > 0.2 for trial in study.trials)
    assert sampler.dominated(study) == (True,)  # type: ignore[attr-defined]


def test_goals_are_kept_with_the_study() -> None:
    study = new_study()
    assert read_reference_points(study) == GOALS
    assert read_reference_points(optuna.create_study()) == ()


def test_a_study_without_goals_is_told_what_to_do() -> None:
    sampler = build_sampler("cma", {}, seed=1, space=SPACE, workers=1, directions=2)
    with pytest.raises(InvalidInput, match="name baselines, or use nsgaii"):
        ask(optuna.create_study(directions=["maximize"] * 2, sampler=sampler), SPACE)


@pytest.mark.parametrize(
    ("space", "says"), [(CATEGORIES, "categorical"), (CONDITIONAL, "categorical|every parameter always exists")]
)
def test_a_space_that_is_no_box_of_numbers_is_refused(space: Space, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        build_sampler("cma", {}, seed=1, space=space, workers=1, directions=2)


@pytest.mark.parametrize("setting", [{"generation_mode": "sync"}, {"popsize": 2}, {"sigma0": -1}, {"restarts": "no"}])
def test_a_setting_that_it_does_not_have_or_that_is_out_of_range_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(setting))):
        build_sampler("cma", setting, seed=1, space=SPACE, workers=1, directions=2)
