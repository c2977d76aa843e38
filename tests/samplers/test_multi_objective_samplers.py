"""Several objectives and constraints: which samplers serve them, and that they resume as if nothing had happened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from evomerge.errors import InvalidInput
from evomerge.samplers import build_sampler
from evomerge.testing.sampler_contract import (
    CONDITIONAL,
    SamplerContract,
    Space,
    ask,
    box,
    crash_in_ask,
    loss,
    proposed,
)

SETTINGS: dict[str, dict[str, Any]] = {
    "gp": {"n_startup_trials": 4},
    "nsgaii": {"population_size": 6},
    "nsgaiii": {"population_size": 6, "dividing_parameter": 4},
    "tpe": {"n_startup_trials": 6},
}
SPACE = box(3)
DIRECTIONS = ("minimize", "maximize", "minimize")


class TestNsgaiii(SamplerContract):
    name = "nsgaiii"
    settings = {"population_size": 8}  # noqa: RUF012 - with fewer parents, two children are often alike by chance
    trials = 20


def limit(trial: FrozenTrial) -> Sequence[float]:
    """Feasible where the first coordinate is at least 0.6."""
    return (0.6 - trial.params["x00"], -1.0)


def build(name: str, space: Space = SPACE, **options: Any) -> optuna.samplers.BaseSampler:
    return build_sampler(name, SETTINGS.get(name, {}), seed=5, space=space, workers=1, directions=3, **options)


def objectives(params: dict[str, Any]) -> tuple[float, float, float]:
    return (loss(params), float(sum(v for v in params.values() if isinstance(v, float))), float(len(repr(params)) % 7))


def go_on(study: optuna.Study, space: Space, n: int) -> None:
    for _ in range(n):
        trial = ask(study, space)
        study.tell(trial, objectives(trial.params))


def new_study(name: str, space: Space = SPACE, **options: Any) -> optuna.Study:
    return optuna.create_study(directions=DIRECTIONS, sampler=build(name, space, **options))


@pytest.mark.parametrize("space", [SPACE, CONDITIONAL], ids=["box", "conditional"])
@pytest.mark.parametrize("constraints", [None, limit], ids=["free", "constrained"])
@pytest.mark.parametrize("name", ["nsgaii", "nsgaiii", "tpe"])
def test_a_resumed_study_of_three_objectives_continues_as_the_uninterrupted_one(
    name: str, constraints: Any, space: Space
) -> None:
    if space is CONDITIONAL and constraints is not None:
        constraints = lambda trial: [0.5 - trial.params.get("ties.weight", 0.0)]  # noqa: E731
    whole = new_study(name, space, constraints=constraints)
    go_on(whole, space, 28)
    pieces = new_study(name, space, constraints=constraints)
    for n in (1, 5, 7, 1, 14):  # 6 and 13 are right after, and one after, a generation's end
        crash_in_ask(pieces, space)
        pieces.sampler = build(name, space, constraints=constraints)
        go_on(pieces, space, n)
    assert proposed(pieces, space) == [trial.params for trial in whole.trials]


@pytest.mark.parametrize("name", ["nsgaii", "nsgaiii"])
def test_a_crash_after_the_parents_were_chosen_shifts_nothing(name: str) -> None:
    """The one who asks first in a generation chooses the parents, and they are stored before it has its params."""
    whole = new_study(name)
    go_on(whole, SPACE, 20)
    study = new_study(name)
    for _ in range(20):
        trial = study.ask()
        trial.suggest_float("x00", 0.0, 1.0)
        study.tell(trial.number, state=TrialState.FAIL)
        study.sampler = build(name)
        go_on(study, SPACE, 1)
    assert proposed(study, SPACE) == [trial.params for trial in whole.trials]


def test_gp_serves_several_objectives_and_constraints_and_resumes() -> None:
    whole = new_study("gp", constraints=limit)
    go_on(whole, SPACE, 6)
    study = new_study("gp", constraints=limit)
    for n in (5, 1):
        study.sampler = build("gp", constraints=limit)
        go_on(study, SPACE, n)
    assert [trial.params for trial in study.trials] == [trial.params for trial in whole.trials]


@pytest.mark.parametrize("name", ["nsgaii", "nsgaiii", "tpe"])
def test_constraints_are_learned_from(name: str) -> None:
    def feasible(constraints: Any) -> float:
        study = new_study(name, constraints=constraints)
        for _ in range(60):
            trial = ask(study, SPACE)
            study.tell(trial, [trial.params["x00"], trial.params["x01"], trial.params["x02"]])
        return float(np.mean([trial.params["x00"] >= 0.6 for trial in study.trials[30:]]))

    assert feasible(limit) > 0.5
    assert feasible(limit) > feasible(None) + 0.2


@pytest.mark.parametrize("name", ["random", "qmc", "tpe"])
def test_the_best_trial_is_feasible(name: str) -> None:
    sampler = build_sampler(name, {}, seed=1, space=SPACE, workers=1, constraints=limit)
    study = optuna.create_study(sampler=sampler)
    for _ in range(20):
        trial = ask(study, SPACE)
        study.tell(trial, trial.params["x00"])
    assert study.best_trial.params["x00"] >= 0.6
    assert study.trials[0].constraints == {"0": 0.6 - study.trials[0].params["x00"], "1": -1.0}


def test_constraints_see_the_trial_as_it_was_told_and_failed_ones_have_none() -> None:
    seen = []

    def remember(trial: FrozenTrial) -> list[float]:
        seen.append((trial.number, trial.state, trial.values, trial.user_attrs))
        return [-1.0]

    study = optuna.create_study(
        sampler=build_sampler("random", {}, seed=1, space=SPACE, workers=1, constraints=remember)
    )
    first, second, third = (ask(study, SPACE) for _ in range(3))
    first.set_user_attr("score", 2)
    study.tell(first, 0.5)
    study.tell(second, state=TrialState.FAIL)
    third.report(0.25, 0)
    study.tell(third, state=TrialState.PRUNED)
    assert seen == [(0, TrialState.COMPLETE, [0.5], {"score": 2}), (2, TrialState.PRUNED, [0.25], {})]
    assert [bool(trial.constraints) for trial in study.trials] == [True, False, True]


def test_a_constraint_that_is_not_a_number_is_refused() -> None:
    sampler = build_sampler("random", {}, seed=1, space=SPACE, workers=1, constraints=lambda _: [float("nan")])
    study = optuna.create_study(sampler=sampler)
    with pytest.raises(InvalidInput, match="constraint 0 of trial 0 is not a number"):
        study.tell(ask(study, SPACE), 0.0)


def test_a_sampler_of_one_number_names_those_that_serve_more() -> None:
    with pytest.raises(InvalidInput, match="one objective, but there are 3; use cma, nsgaii, nsgaiii, tpe or gp"):
        build("catcma")


@pytest.mark.parametrize("name", ["cma", "catcma"])
def test_samplers_that_know_no_constraints_name_those_that_do(name: str) -> None:
    with pytest.raises(InvalidInput, match="cannot learn from constraints; use nsgaii, nsgaiii, tpe or gp"):
        build_sampler(name, {}, seed=1, space=SPACE, workers=1, constraints=limit)


def test_gp_refuses_a_conditional_space_and_names_the_way_out() -> None:
    with pytest.raises(InvalidInput, match="every parameter always exists; use catcma, or tpe"):
        build("gp", CONDITIONAL)


@pytest.mark.parametrize("setting", ["generation_mode", "mean_every"])
def test_a_setting_that_cma_has_with_one_objective_only_is_refused_as_such(setting: str) -> None:
    with pytest.raises(InvalidInput, match=f"{setting}.*one objective; with several, leave it out"):
        build_sampler("cma", {setting: 1}, seed=1, space=SPACE, workers=1, directions=2)


@pytest.mark.parametrize(
    ("setting", "value"), [("dividing_parameter", 0), ("population_size", 1), ("mutation_prob", 2)]
)
def test_a_setting_of_nsgaiii_out_of_its_range_is_refused_by_name(setting: str, value: int) -> None:
    with pytest.raises(InvalidInput, match=setting):
        build_sampler("nsgaiii", {setting: value}, seed=1, space=SPACE, workers=1)
