"""The contract for the samplers that come from Optuna and scipy, and what they add to it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import optuna
import pytest
from scipy.stats import qmc

from evomerge.errors import InvalidInput
from evomerge.samplers import SAMPLERS, build_sampler
from evomerge.testing.sampler_contract import CONDITIONAL, SamplerContract, Space, ask, box, loss, run, tell


class TestRandom(SamplerContract):
    name = "random"


class TestSobol(SamplerContract):
    name = "qmc"

    def test_points_fill_the_space_more_evenly_than_random_ones(self) -> None:
        def discrepancy(name: str) -> float:
            study = optuna.create_study(sampler=build_sampler(name, {}, seed=3, space=box(4), workers=1))
            return float(qmc.discrepancy(np.array([list(params.values()) for params in run(study, box(4), 64)])))

        assert discrepancy("qmc") < 0.5 * discrepancy("random")


class TestTpe(SamplerContract):
    name = "tpe"
    settings = {"n_startup_trials": 4}  # noqa: RUF012

    def test_learns_although_a_trial_without_params_was_completed(self) -> None:
        study = optuna.create_study(sampler=self.sampler(box(2)))
        study.add_trial(optuna.create_trial(value=0.0))
        losses = [loss(params) for params in run(study, box(2), 60)]
        assert np.median(losses[40:]) < 0.5 * np.median(losses[:10])

    def test_samples_conditional_parameters_together(self) -> None:
        study = optuna.create_study(sampler=self.sampler(CONDITIONAL))
        run(study, CONDITIONAL, 30)
        trial = study.ask()
        relative = study.sampler.infer_relative_search_space(study, study.trials[-1])
        assert set(relative) == set(CONDITIONAL.distributions)
        assert trial.number == 30


class TestGp(SamplerContract):
    name = "gp"
    settings = {"n_startup_trials": 4}  # noqa: RUF012
    spaces = {"numbers": box(2)}  # noqa: RUF012
    trials = 8


class TestNsgaii(SamplerContract):
    name = "nsgaii"
    settings = {"population_size": 4}  # noqa: RUF012

    def test_serves_two_objectives_and_resumes_exactly(self) -> None:
        space = box(3)

        def go_on(study: optuna.Study, n: int) -> list[dict[str, Any]]:
            asked = []
            for _ in range(n):
                trial = ask(study, space)
                asked.append(trial.params)
                study.tell(trial, (loss(trial.params), trial.params["x00"]))
            return asked

        def build() -> optuna.samplers.BaseSampler:
            return build_sampler("nsgaii", self.settings, seed=5, space=space, workers=1, directions=2)

        whole = go_on(optuna.create_study(directions=["minimize", "maximize"], sampler=build()), 25)
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=build())
        pieces = []
        for n in (1, 7, 4, 13):
            study.sampler = build()
            pieces += go_on(study, n)
        assert pieces == whole

    def test_the_population_does_not_depend_on_the_workers_which_may_change(self) -> None:
        def population(settings: dict[str, Any], workers: int) -> int | None:
            sampler = build_sampler("nsgaii", settings, seed=1, space=box(2), workers=workers)
            return sampler._make(0).population_size  # type: ignore[attr-defined, no-any-return]

        assert population({}, 4) == population({}, 64) == 50
        assert population({"population_size": 10}, 64) == 10


@pytest.mark.parametrize("name", ["nsgaii", "nsgaiii"])
@pytest.mark.parametrize("crossover", ["sbx", "uniform", "blx_alpha", "vsbx", "spx", "undx"])
@pytest.mark.parametrize("mutation", ["polynomial", "uniform"])
def test_children_of_every_crossover_and_mutation_lie_in_the_space(name: str, crossover: str, mutation: str) -> None:
    space = box(3)
    settings = {"population_size": 4, "crossover": crossover, "mutation": mutation, "mutation_prob": 0.5}
    study = optuna.create_study(
        directions=["minimize", "maximize"],
        sampler=build_sampler(name, settings, seed=1, space=space, workers=1, directions=2),
    )
    for _ in range(16):
        trial = ask(study, space)
        study.tell(trial, (loss(trial.params), trial.params["x00"]))
    children = [trial.params for trial in study.trials[4:]]
    assert all(space.distributions[axis]._contains(value) for child in children for axis, value in child.items())
    assert len({tuple(child.values()) for child in children}) > 6


def test_the_table_is_complete() -> None:
    assert set(SAMPLERS) == {"catcma", "cma", "forest", "gp", "nsgaii", "nsgaiii", "qmc", "random", "tpe"}


def test_an_unknown_sampler_is_answered_with_the_nearest() -> None:
    with pytest.raises(InvalidInput, match="unknown sampler 'cmaes'; did you mean 'cma'"):
        build_sampler("cmaes", {}, seed=1, space=box(2), workers=1)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cma", {"sigma0": 0}),
        ("cma", {"sigma0": float("nan")}),
        ("cma", {"sigma0": "0.2"}),
        ("cma", {"sigma0": True}),
        ("cma", {"popsize": 2}),
        ("cma", {"popsize": 8.0}),
        ("tpe", {"n_startup_trials": -1}),
        ("forest", {"n_startup_trials": 1}),
        ("forest", {"n_trees": 0}),
        ("forest", {"random_share": 1.5}),
        ("gp", {"n_startup_trials": 0}),
        ("nsgaii", {"population_size": 1}),
        ("nsgaii", {"crossover_prob": 1.5}),
        ("nsgaii", {"mutation_prob": -0.1}),
        ("nsgaii", {"swapping_prob": True}),
        ("nsgaii", {"crossover": "single_point"}),
        ("nsgaii", {"mutation": ["polynomial"]}),
        ("nsgaii", {"population_size": 2, "crossover": "spx"}),
    ],
)
def test_a_setting_out_of_its_range_is_refused_by_name(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(settings))):
        build_sampler(name, settings, seed=1, space=box(2), workers=1)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_settings_are_not_changed_and_none_means_default(name: str) -> None:
    settings = {"sigma0": None} if name == "cma" else {}
    build_sampler(name, settings, seed=1, space=box(2), workers=1)
    assert settings == ({"sigma0": None} if name == "cma" else {})


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_no_sampler_warns(name: str) -> None:
    space: Space = box(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study = optuna.create_study(sampler=build_sampler(name, {}, seed=1, space=space, workers=1))
        for number in range(14):
            trial = ask(study, space)
            tell(study, trial, loss(trial.params), number)
        assert len(study.trials) == 14


@pytest.mark.parametrize("setting", ["crossover_prob", "mutation_prob", "swapping_prob"])
def test_a_probability_may_be_none_at_all(setting: str) -> None:
    assert build_sampler("nsgaii", {setting: 0}, seed=1, space=box(2), workers=1)
