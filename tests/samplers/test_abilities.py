"""The abilities of samplers: rows before one is built, and the base class after that, also behind constraints."""

from __future__ import annotations

from typing import Any, get_args

import optuna
import pytest
from optuna.trial import FrozenTrial
from pydantic import BaseModel

from evomerge.evolution.cma_evolution import GENERATION_MODES, RESTARTS
from evomerge.samplers import SAMPLERS, build_sampler
from evomerge.samplers.base import SearchSampler
from evomerge.samplers.cma import CmaSampler
from evomerge.samplers.constraints import ConstrainedSampler
from evomerge.samplers.settings import CmaSettings, NsgaiiSettings
from evomerge.testing.sampler_contract import ask, box, loss

SPACE = box(3)


def build(name: str, **settings: Any) -> SearchSampler:
    return build_sampler(name, settings, seed=1, space=SPACE, workers=1)


def always_met(trial: FrozenTrial) -> list[float]:
    return [-1.0]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_row_has_the_name_that_it_is_found_by(name: str) -> None:
    assert SAMPLERS[name].name == name


def test_the_settings_have_the_choices_that_the_samplers_know() -> None:
    def choices(model: type[BaseModel], name: str) -> set[str]:
        return set(get_args(model.model_fields[name].annotation))

    assert choices(CmaSettings, "restarts") == set(RESTARTS)
    assert choices(CmaSettings, "generation_mode") == set(GENERATION_MODES)
    for name in ("crossover", "mutation"):
        for choice in choices(NsgaiiSettings, name):
            assert build("nsgaii", **{name: choice})


@pytest.mark.parametrize("name", SAMPLERS)
def test_without_populations_a_mean_or_generations_the_answers_are_neutral(name: str) -> None:
    sampler = build(name)
    study = optuna.create_study(sampler=sampler)
    assert sampler.ready(study)
    assert (sampler.popsize is None) == (name not in ("cma", "catcma"))
    assert (sampler.mean(study) is None) == (name != "cma")


def test_a_sampler_behind_constraints_has_the_abilities_of_the_sampler() -> None:
    inner = CmaSampler(SPACE, seed=1, popsize=4, generation_mode="sync")
    study = optuna.create_study(direction="maximize", sampler=ConstrainedSampler(inner, always_met))
    sampler = study.sampler
    assert isinstance(sampler, SearchSampler)
    assert sampler.popsize == 4
    trials = [ask(study, SPACE) for _ in range(4)]
    assert not sampler.ready(study)  # a whole generation is under way
    for trial in trials:
        study.tell(trial, -loss(trial.params))
    assert sampler.ready(study)
    assert sampler.mean(study) == inner.mean(study)
