"""The contract for the catcma sampler, and what only it promises."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from evomerge.errors import InvalidInput
from evomerge.samplers import build_sampler
from evomerge.samplers.catcma import CatCmaSampler
from evomerge.storage.attributes import TELL
from evomerge.testing.sampler_contract import (
    CATEGORIES,
    CONDITIONAL,
    NUMBERS,
    SamplerContract,
    Space,
    ask,
    box,
    run,
    tell,
)

Loss = Callable[[Mapping[str, Any]], float]

METHODS = ("linear", "ties", "dare")
MERGES = Space(
    {
        f"{group}.{name}": distribution
        for group in ("low", "high")
        for name, distribution in {
            "method": CategoricalDistribution(METHODS),
            **{f"{method}.weight": FloatDistribution(0.0, 1.0) for method in METHODS},
            "ties.density": FloatDistribution(0.1, 1.0),
            "dare.sign": CategoricalDistribution(("sum", "count", "none")),
            "dare.draws": IntDistribution(1, 9),
        }.items()
    },
    {
        f"{group}.{name}": value
        for group in ("low", "high")
        for name, value in (("method", "linear"), ("linear.weight", 0.5))
    },
    {
        f"{group}.{name}": (f"{group}.method", name.split(".")[0])
        for group in ("low", "high")
        for name in (*(f"{method}.weight" for method in METHODS), "ties.density", "dare.sign", "dare.draws")
    },
)
MIXED = Space(
    {
        "method": CategoricalDistribution(("a", "b", "c", "d")),
        "normalise": CategoricalDistribution((True, False)),
        "weight": FloatDistribution(0.0, 1.0),
        "scale": FloatDistribution(1e-3, 10.0, log=True),
        "steps": IntDistribution(0, 15),
    },
    {"method": "a", "normalise": True, "weight": 0.5, "scale": 0.1, "steps": 7},
)
SPACES = {"numbers": NUMBERS, "categories": CATEGORIES, "conditional": CONDITIONAL, "merges": MERGES}


class TestCatCma(SamplerContract):
    name = "catcma"
    settings = {"popsize": 5}  # noqa: RUF012
    trials = 20


def merging(params: Mapping[str, Any]) -> float:
    """The best: dare below, ties above, each with its own parameters."""
    loss = 0.0
    for group, best, target in (("low", "dare", 0.8), ("high", "ties", 0.2)):
        method = params[f"{group}.method"]
        loss += 0.2 * (method != best) + (params[f"{group}.{method}.weight"] - target) ** 2
        loss += 0.1 * (params.get(f"{group}.dare.sign", "count") != "count")
        loss += (params.get(f"{group}.dare.draws", 5) - 5) ** 2 / 100 + (
            params.get(f"{group}.ties.density", 0.6) - 0.6
        ) ** 2
    return loss


def mixed(params: Mapping[str, Any]) -> float:
    wrong = 0.5 * (params["method"] != "c") + 0.3 * params["normalise"]
    numbers = (params["weight"] - 0.83) ** 2 + (math.log10(params["scale"]) - 0.5) ** 2 / 4
    return float(wrong + numbers + ((params["steps"] - 12) / 15) ** 2)


def any_loss(params: Mapping[str, Any]) -> float:
    return random.Random(repr(sorted(params.items()))).random()


def search(space: Space, loss: Loss, n: int, seed: int, name: str = "catcma") -> list[float]:
    study = optuna.create_study(sampler=build_sampler(name, {}, seed=seed, space=space, workers=1))
    for number in range(n):
        trial = ask(study, space)
        tell(study, trial, loss(trial.params), number)
    return [float(trial.value or 0.0) for trial in study.trials]


def several_workers(study: optuna.Study, space: Space, trials: int, seed: int) -> None:
    """Five workers that finish in any order; some trials fail and some are pruned."""
    chance = random.Random(seed)
    running: list[optuna.Trial] = []
    for position in range(trials):
        while len(running) < 5:
            running.append(ask(study, space))
        trial = running.pop(chance.randrange(5))
        if chance.random() < 0.1:
            study.tell(trial, state=TrialState.FAIL)
        elif chance.random() < 0.1:
            trial.report(any_loss(trial.params), 0)
            trial.set_user_attr(TELL, position)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            tell(study, trial, any_loss(trial.params), position)


def state(sampler: CatCmaSampler) -> tuple[Any, ...]:
    """All that the distribution consists of."""
    names = ("_mean", "_sigma", "_C", "_A", "_p_sigma", "_pc", "_pmut", "_q", "_s", "_Delta", "_g")
    values = [getattr(sampler._optimizer, name, None) for name in names]
    return (*(None if value is None else np.asarray(value).tobytes() for value in values), sampler.told)


@pytest.mark.parametrize("kind", sorted(SPACES))
def test_the_state_rebuilt_at_any_instant_is_the_live_one_bit_for_bit(kind: str) -> None:
    space = SPACES[kind]
    live = CatCmaSampler(space, seed=3, popsize=6)
    study = optuna.create_study(sampler=live)
    for instant in range(8):
        several_workers(study, space, 5, seed=instant)
        rebuilt = CatCmaSampler(space, seed=3, popsize=6)
        copy = optuna.create_study(sampler=rebuilt)
        copy.add_trials(study.get_trials())
        assert ask(study, space).params == ask(copy, space).params
        assert state(live) == state(rebuilt)
    assert live.generation >= 4


@pytest.mark.parametrize("kind", sorted(SPACES))
def test_a_new_sampler_before_every_ask_proposes_the_same(kind: str) -> None:
    space = SPACES[kind]
    whole = run(optuna.create_study(sampler=CatCmaSampler(space, seed=5, popsize=4)), space, 20)
    study = optuna.create_study()
    for _ in range(20):
        study.sampler = CatCmaSampler(space, seed=5, popsize=4)
        run(study, space, 1)
    assert [trial.params for trial in study.trials] == whole


def test_the_order_in_which_results_were_told_is_the_one_that_counts() -> None:
    def learned(order: list[int]) -> tuple[Any, ...]:
        sampler = CatCmaSampler(MIXED, seed=1, popsize=4)
        study = optuna.create_study(sampler=sampler)
        trials = [ask(study, MIXED) for _ in range(8)]
        for trial, position in zip(trials, order, strict=True):
            tell(study, trial, mixed(trial.params), position)
        ask(study, MIXED)
        return state(sampler)

    forward, backward = learned([0, 1, 2, 3, 4, 5, 6, 7]), learned([7, 6, 5, 4, 3, 2, 1, 0])
    assert forward[-1] == tuple(range(8))
    assert backward[-1] == tuple(reversed(range(8)))
    assert forward != backward


def test_failed_incomplete_foreign_and_infinite_trials_are_ignored_and_pruned_ones_learned_from() -> None:
    sampler = CatCmaSampler(CONDITIONAL, seed=1, popsize=4)
    study = optuna.create_study(sampler=sampler)
    study.add_trial(optuna.create_trial(value=0.0))
    half = {"method": CONDITIONAL.distributions["method"]}
    study.add_trial(optuna.create_trial(params={"method": "ties"}, distributions=half, value=0.0))
    outside = half | {"linear.weight": FloatDistribution(0.0, 9.0)}
    study.add_trial(
        optuna.create_trial(params={"method": "linear", "linear.weight": 5.0}, distributions=outside, value=0.0)
    )
    study.tell(ask(study, CONDITIONAL), state=TrialState.FAIL)
    study.tell(ask(study, CONDITIONAL), math.inf)
    pruned = ask(study, CONDITIONAL)
    pruned.report(0.2, 1)
    study.tell(pruned, state=TrialState.PRUNED)
    complete = ask(study, CONDITIONAL)
    study.tell(complete, 0.3)
    ask(study, CONDITIONAL)
    assert sampler.told == (pruned.number, complete.number)


def test_it_starts_at_the_centre_with_all_categories_alike() -> None:
    sampler = CatCmaSampler(MERGES, seed=1)
    study = optuna.create_study(sampler=sampler)
    asked = [ask(study, MERGES).params for _ in range(200)]
    chosen = [params["low.method"] for params in asked]
    assert all(45 < chosen.count(method) < 90 for method in METHODS)
    weights = [params["low.linear.weight"] for params in asked if "low.linear.weight" in params]
    assert np.mean(weights) == pytest.approx(0.5, abs=0.08)
    off_middle = optuna.create_study(sampler=CatCmaSampler(box(1), seed=1, sigma0=0.01))
    assert ask(off_middle, box(1)).params["x00"] == pytest.approx(0.4, abs=0.05)


def test_only_what_exists_is_stored() -> None:
    study = optuna.create_study(sampler=CatCmaSampler(MERGES, seed=1))
    assert all(set(params) == set(MERGES.active(params)) for params in run(study, MERGES, 20))


def test_what_did_not_exist_is_neither_learned_nor_forgotten() -> None:
    """A method that nobody chooses keeps its parameters' distribution: the spread must not shrink meanwhile."""
    sampler = CatCmaSampler(CONDITIONAL, seed=1, popsize=6)
    asked = {"method": "linear", "linear.weight": 0.5}
    rng = np.random.default_rng(0)
    for number in range(240):
        sampler._add(number, asked | {"linear.weight": float(rng.uniform())}, float(rng.uniform()))
    optimizer, names = sampler._optimizer, sampler._coordinates._continuous
    spread = dict(zip(names, optimizer._sigma * np.sqrt(np.diag(optimizer._C)), strict=True))
    assert min(spread["ties.weight"], spread["ties.density"]) > 0.04  # from 0.2, by chance; 1e-6 if told as the mean
    assert 0.0 <= optimizer._mean.min() <= optimizer._mean.max() <= 1.0


@pytest.mark.parametrize(("space", "loss"), [(MIXED, mixed), (MERGES, merging)], ids=["mixed", "merges"])
def test_beats_random_search(space: Space, loss: Loss) -> None:
    ours = [search(space, loss, 130, seed) for seed in (1, 2)]
    theirs = [search(space, loss, 130, seed, "random") for seed in (1, 2)]
    assert np.median([min(values) for values in ours]) < 0.5 * np.median([min(values) for values in theirs])
    assert np.median(np.array(ours)[:, -40:]) < 0.2 * np.median(np.array(theirs))


def test_a_maximised_study_is_the_mirror_image_of_a_minimised_one() -> None:
    def sequence(direction: str, sign: float) -> list[dict[str, Any]]:
        study = optuna.create_study(direction=direction, sampler=CatCmaSampler(MIXED, seed=5))
        for number in range(30):
            trial = ask(study, MIXED)
            tell(study, trial, sign * mixed(trial.params), number)
        return [trial.params for trial in study.trials]

    assert sequence("maximize", -1.0) == sequence("minimize", 1.0)


def test_a_category_that_nobody_had_keeps_its_probabilities() -> None:
    space = Space(
        {"depth": FloatDistribution(0.0, 1.0), "mode": CategoricalDistribution(("a", "b", "c"))},
        {"depth": 0.5},
        {"mode": ("depth", 2.0)},
    )
    sampler = CatCmaSampler(space, seed=1, popsize=4)
    run(optuna.create_study(sampler=sampler), space, 20)
    assert sampler.generation == 4
    assert np.array_equal(sampler._optimizer._q, np.full((1, 3), 1 / 3))


def test_a_far_seed_does_not_blow_up_the_distribution() -> None:
    sampler = CatCmaSampler(box(3), seed=1, sigma0=0.001, popsize=4)
    study = optuna.create_study(sampler=sampler)
    for value in (0.9, 0.95, 1.0, 0.0):
        study.enqueue_trial(dict.fromkeys(box(3).distributions, value))
    run(study, box(3), 5)
    assert sampler.told[:4] == (0, 1, 2, 3)
    assert sampler._optimizer._sigma < 0.01


def test_large_integers_are_searched_without_listing_their_values() -> None:
    space = Space({"seed": IntDistribution(0, 10**9), "pair": IntDistribution(3, 4)}, {"seed": 5 * 10**8, "pair": 3})
    values = search(space, lambda p: abs(p["seed"] / 1e9 - 0.7) + (p["pair"] != 4), 80, seed=2)
    assert min(values) < 0.01


@pytest.mark.parametrize("kind", ["box", *sorted(SPACES)])
@pytest.mark.parametrize("where", ["plateau", "corner", "slope"])
def test_long_degenerate_searches_stay_alive(kind: str, where: str) -> None:
    space = box(1) if kind == "box" else SPACES[kind]
    sampler = CatCmaSampler(space, seed=1, popsize=4)
    for number in range(400):
        sampler._key("test", number)
        params = sampler._coordinates.decode(sampler._optimizer.ask())
        if where == "corner":
            params = {
                name: d.choices[0] if isinstance(d, CategoricalDistribution) else d.low  # type: ignore[attr-defined]
                for name, d in space.distributions.items()
            }
        params = {name: params[name] for name in space.active(params)}
        sampler._add(number, params, float(number) if where == "slope" else 0.0)
    optimizer = sampler._optimizer
    assert np.isfinite(optimizer._mean).all()
    assert 1e-7 < optimizer._sigma < 10.0
    assert not optimizer._use_categorical or np.isfinite(optimizer._q).all()


@hypothesis_settings(max_examples=15, deadline=None)
@given(losses=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=4, max_size=40))
def test_whatever_is_told_the_next_proposal_is_in_the_space(losses: list[float]) -> None:
    study = optuna.create_study(sampler=CatCmaSampler(MERGES, seed=1, popsize=4))
    for number, value in enumerate(losses):
        tell(study, ask(study, MERGES), value, number)
    params = ask(study, MERGES).params
    assert all(
        MERGES.distributions[name]._contains(MERGES.distributions[name].to_internal_repr(value))
        for name, value in params.items()
    )


def test_n28_neither_pickles_nor_unpickles(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study(sampler=CatCmaSampler(MIXED, seed=1, popsize=4))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("pickle was used")

    for name in ("dumps", "loads", "dump", "load", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    run(study, MIXED, 10)
    assert all(trial.system_attrs == {} for trial in study.trials)


def test_the_default_population_grows_with_the_dimensions_and_the_workers() -> None:
    def popsize(settings: dict[str, Any], workers: int) -> int:
        sampler = build_sampler("catcma", settings, seed=1, space=box(12), workers=workers)
        assert isinstance(sampler, CatCmaSampler)
        return sampler.popsize

    assert popsize({}, 4) == 11
    assert popsize({}, 32) == 32
    assert popsize({"popsize": 20}, 32) == 20


@pytest.mark.parametrize("settings", [{"sigma0": 0}, {"sigma0": math.inf}, {"popsize": 3}, {"popsize": 8.0}])
def test_a_setting_out_of_its_range_is_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(settings))):
        build_sampler("catcma", settings, seed=1, space=box(2), workers=1)


def test_what_it_cannot_serve_is_refused() -> None:
    with pytest.raises(InvalidInput, match="nothing to search"):
        CatCmaSampler(Space({"x": FloatDistribution(0.5, 0.5)}, {"x": 0.5}), seed=1)
    with pytest.raises(InvalidInput, match="one objective"):
        optuna.create_study(directions=["minimize"] * 2, sampler=CatCmaSampler(box(2), seed=1)).ask()
    with pytest.raises(InvalidInput, match="Hyperband"):
        optuna.create_study(pruner=optuna.pruners.HyperbandPruner(), sampler=CatCmaSampler(box(2), seed=1)).ask()
