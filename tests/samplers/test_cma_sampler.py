"""The contract for the cma sampler, and what only it promises."""

from __future__ import annotations

import heapq
import math
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState

from evomerge.errors import InvalidInput
from evomerge.evolution.cma_evolution import Evaluation, Evolution, EvolutionSettings
from evomerge.samplers import build_sampler
from evomerge.samplers.cma import CmaSampler
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


class TestCma(SamplerContract):
    name = "cma"
    spaces = {"numbers": NUMBERS}  # noqa: RUF012


def sphere(params: Mapping[str, Any]) -> float:
    return float(sum((value - 0.7) ** 2 for value in params.values()))


def ill_conditioned(params: Mapping[str, Any]) -> float:
    """A sphere whose axes differ by a factor of 30 in length; not at the centre."""
    n = len(params)
    return float(sum(30 ** (2 * i / (n - 1)) * (v - 0.7) ** 2 for i, v in enumerate(params.values())))


def asynchronous(
    study: optuna.Study,
    space: Space,
    loss: Callable[[Mapping[str, Any]], float],
    *,
    workers: int,
    trials: int,
    seed: int,
) -> None:
    """What `workers` workers do whose evaluations take log-normal times, without waiting for them."""
    durations = np.random.default_rng(seed)
    running: list[tuple[float, int, optuna.Trial]] = []
    clock, asked, told = 0.0, 0, 0
    while told < trials:
        while len(running) < workers and asked < trials:
            trial = ask(study, space)
            heapq.heappush(running, (clock + durations.lognormal(0.0, 0.3), trial.number, trial))
            asked += 1
        clock, _, trial = heapq.heappop(running)
        tell(study, trial, loss(trial.params), told)
        told += 1


def state(sampler: CmaSampler, study: optuna.Study, space: Space) -> tuple[Any, ...]:
    """The distribution after an ask, in which pycma decomposes its covariance matrix, and what is asked next."""
    params = ask(study, space).params
    strategy = sampler._evolution.strategy._strategy
    return (strategy.mean.tobytes(), strategy.sigma, strategy.C.tobytes(), strategy.countevals, sampler.told, params)


@pytest.mark.parametrize("workers", [1, 4, 8, 16])
def test_the_rebuilt_state_is_the_live_one_bit_for_bit(workers: int) -> None:
    space = box(6)
    live = CmaSampler(space, seed=3, popsize=8)
    study = optuna.create_study(sampler=live)
    asynchronous(study, space, ill_conditioned, workers=workers, trials=75, seed=workers)
    rebuilt = CmaSampler(space, seed=3, popsize=8)
    copy = optuna.create_study(sampler=rebuilt)
    copy.add_trials(study.get_trials())
    for _ in range(3):
        assert state(live, study, space) == state(rebuilt, copy, space)
    assert len(live.told) == 75
    assert live._evolution.strategy._strategy.countevals == 72  # the open population apart, every evaluation


def test_the_order_in_which_results_were_told_is_the_one_that_counts() -> None:
    space = box(3)

    def study_told_in(order: list[int]) -> tuple[Any, ...]:
        sampler = CmaSampler(space, seed=1, popsize=4)
        study = optuna.create_study(sampler=sampler)
        trials = [ask(study, space) for _ in range(8)]
        for number in range(8):
            tell(study, trials[number], sphere(trials[number].params), order[number])
        return sampler.mean(study), sampler.told

    mean, told = study_told_in([0, 1, 2, 3, 4, 5, 6, 7])
    other_mean, other_told = study_told_in([7, 6, 5, 4, 3, 2, 1, 0])
    assert told == tuple(range(8))
    assert other_told == tuple(reversed(range(8)))
    assert mean != other_mean


def test_a_trial_that_is_not_finished_does_not_count_although_it_has_its_tell_position() -> None:
    space = box(3)
    sampler = CmaSampler(space, seed=1)
    study = optuna.create_study(sampler=sampler)
    ask(study, space).set_user_attr(TELL, 0)
    sampler.mean(study)
    assert sampler.told == ()


def test_a_trial_that_is_inserted_before_the_others_is_learned_as_by_a_new_sampler() -> None:
    space = box(3)
    live = CmaSampler(space, seed=1, popsize=4)
    study = optuna.create_study(sampler=live)
    run(study, space, 9)
    study.add_trial(optuna.create_trial(params=dict.fromkeys(space.distributions, 0.7),
                                        distributions=dict(space.distributions), value=0.0))  # fmt: skip
    assert live.mean(study) == CmaSampler(space, seed=1, popsize=4).mean(study)
    assert live.told[0] == 9


def test_one_sampler_can_serve_two_studies_in_turn() -> None:
    space = box(3)
    sampler = CmaSampler(space, seed=1, popsize=4)
    alone = run(optuna.create_study(sampler=CmaSampler(space, seed=1, popsize=4)), space, 12)
    first, second = optuna.create_study(sampler=sampler), optuna.create_study(sampler=sampler)
    run(second, box(3), 5)
    assert run(first, space, 12) == alone


def test_failed_not_finite_foreign_and_empty_trials_are_ignored_and_pruned_ones_learned_from() -> None:
    space = box(2)
    sampler = CmaSampler(space, seed=1, popsize=3)
    study = optuna.create_study(sampler=sampler)
    study.add_trial(optuna.create_trial(value=0.0))
    study.add_trial(optuna.create_trial(params={"y": 0.5}, distributions={"y": FloatDistribution(0.0, 1.0)}, value=0.0))
    outside = {name: FloatDistribution(0.0, 9.0) for name in space.distributions}
    study.add_trial(optuna.create_trial(params=dict.fromkeys(outside, 5.0), distributions=outside, value=0.0))
    study.tell(ask(study, space), state=TrialState.FAIL)
    study.tell(ask(study, space), math.inf)
    study.tell(ask(study, space), state=TrialState.PRUNED)  # never reported anything
    pruned, complete, last = ask(study, space), ask(study, space), ask(study, space)
    pruned.report(0.4, 0)
    pruned.report(0.2, 1)
    study.tell(pruned, state=TrialState.PRUNED)
    study.tell(complete, 0.3)
    study.tell(last, 0.5)
    assert sampler.mean(study) != space.centre
    assert sampler.told == (pruned.number, complete.number, last.number)


def test_a_baseline_in_the_study_does_not_switch_the_sampler_off() -> None:
    space = box(3)
    study = optuna.create_study(sampler=CmaSampler(space, seed=4))
    study.add_trial(optuna.create_trial(value=0.0))
    for number in range(150):
        trial = ask(study, space)
        tell(study, trial, sphere(trial.params), number)
    assert min(trial.value or 0.0 for trial in study.trials[100:]) < 1e-4


def test_enqueued_seeds_are_learned_from() -> None:
    space = box(4)
    sampler = CmaSampler(space, seed=2, popsize=4)
    study = optuna.create_study(sampler=sampler)
    study.enqueue_trial(dict(space.centre))
    for value in (0.7, 0.72, 0.68, 0.71):
        study.enqueue_trial(dict.fromkeys(space.distributions, value))
    for number in range(5):
        trial = ask(study, space)
        tell(study, trial, sphere(trial.params), number)
    assert study.trials[0].params == space.centre
    assert sampler.mean(study)
    assert sampler.told == (0, 1, 2, 3, 4)
    assert all(value > 0.55 for value in sampler.mean(study).values())


def test_an_enqueued_point_on_the_turn_of_the_mean_is_learned_from() -> None:
    sampler = CmaSampler(box(4), seed=2, popsize=4, mean_every=5)
    study = optuna.create_study(sampler=sampler)
    run(study, box(4), 9)  # the fifth was the mean
    study.enqueue_trial(dict.fromkeys(box(4).distributions, 0.7))
    run(study, box(4), 4)
    assert sampler.mean(study)
    assert sampler.generation == 3


def test_a_maximised_study_is_the_mirror_image_of_a_minimised_one() -> None:
    space = box(3)

    def sequence(direction: str, sign: float) -> list[dict[str, Any]]:
        study = optuna.create_study(direction=direction, sampler=CmaSampler(space, seed=5))
        for number in range(40):
            trial = ask(study, space)
            tell(study, trial, sign * sphere(trial.params), number)
        return [trial.params for trial in study.trials]

    assert sequence("maximize", -1.0) == sequence("minimize", 1.0)


@pytest.mark.parametrize("dimensions", [1, 2, 10])
def test_the_mean_converges_on_a_sphere(dimensions: int) -> None:
    space = box(dimensions)
    sampler = CmaSampler(space, seed=6)
    study = optuna.create_study(sampler=sampler)
    asynchronous(study, space, sphere, workers=1, trials=40 + 60 * dimensions, seed=0)
    assert sphere(sampler.mean(study)) < 1e-3


def test_one_dimension_with_its_optimum_on_a_bound() -> None:
    space = box(1)
    sampler = CmaSampler(space, seed=6)
    study = optuna.create_study(sampler=sampler)
    asynchronous(study, space, lambda params: -params["x00"], workers=4, trials=120, seed=0)
    assert sampler.mean(study)["x00"] > 0.999


def test_finds_the_best_value_of_grids_and_logarithms() -> None:
    space = Space(
        {
            "integer": IntDistribution(-10, 10),
            "step": FloatDistribution(0.0, 1.0, step=0.25),
            "log": FloatDistribution(1e-6, 1.0, log=True),
            "log_integer": IntDistribution(1, 1000, log=True),
        },
        {"integer": 0, "step": 0.5, "log": 1e-3, "log_integer": 30},
    )

    def distance(p: Mapping[str, Any]) -> float:
        logs = (math.log10(p["log"]) + 4.5) ** 2 + math.log10(p["log_integer"] / 200) ** 2
        return float((p["integer"] - 7) ** 2 / 10 + (p["step"] - 0.25) ** 2 + logs)

    study = optuna.create_study(sampler=CmaSampler(space, seed=1))
    asynchronous(study, space, distance, workers=4, trials=300, seed=0)
    best = study.best_trial.params
    assert (best["integer"], best["step"]) == (7, 0.25)
    assert best["log"] == pytest.approx(10**-4.5, rel=0.2)
    assert best["log_integer"] == pytest.approx(200, rel=0.1)


def test_the_mean_before_the_first_population_is_the_centre() -> None:
    sampler = CmaSampler(NUMBERS, seed=1)
    mean = sampler.mean(optuna.create_study(sampler=sampler))
    assert mean == pytest.approx(dict(NUMBERS.centre))
    assert list(mean) == list(NUMBERS.distributions)
    assert sampler.generation == 0


def test_beats_optunas_sampler_when_eight_workers_do_not_wait_for_each_other() -> None:
    space = box(12)

    def best(sampler: optuna.samplers.BaseSampler, seed: int) -> float:
        study = optuna.create_study(sampler=sampler)
        study.enqueue_trial(dict(space.centre))
        asynchronous(study, space, ill_conditioned, workers=8, trials=480, seed=seed)
        return study.best_value

    seeds = (1, 2, 3)
    ours = [best(CmaSampler(space, seed=seed, popsize=12), seed) for seed in seeds]
    theirs = [best(optuna.samplers.CmaEsSampler(seed=seed, popsize=12), seed) for seed in seeds]
    assert np.median(ours) < np.median(theirs)


def test_n28_neither_pickles_nor_unpickles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db", sampler=CmaSampler(box(2), seed=1, popsize=4))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("pickle was used")

    for name in ("dumps", "loads", "dump", "load", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    run(study, box(2), 10)
    assert all(set(trial.system_attrs) <= {"fixed_params"} for trial in study.trials)
    assert study._storage.get_study_system_attrs(study._study_id) == {}


def test_writes_and_reads_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cma_signals.in").write_text("{'timeout': 0}; raise SystemExit('signals were read')\n")
    run(optuna.create_study(sampler=CmaSampler(box(2), seed=1, popsize=4)), box(2), 20)
    assert [path.name for path in tmp_path.iterdir()] == ["cma_signals.in"]


def test_the_default_population_grows_with_the_dimensions_and_the_workers() -> None:
    assert CmaSampler(box(12), seed=1).popsize == 11

    def popsize(settings: dict[str, Any], workers: int) -> int:
        sampler = build_sampler("cma", settings, seed=1, space=box(12), workers=workers)
        assert isinstance(sampler, CmaSampler)
        return sampler.popsize

    assert popsize({}, 4) == 11
    assert popsize({}, 32) == 16
    assert popsize({"generation_mode": "sync"}, 32) == 32
    assert popsize({"popsize": 20}, 32) == 20


@pytest.mark.parametrize(("space", "reason"), [(CATEGORIES, "'choice' is categorical"), (CONDITIONAL, "categorical")])
def test_a_space_without_numbers_only_is_refused_with_the_way_out(space: Space, reason: str) -> None:
    with pytest.raises(InvalidInput, match=f"{reason}.*use.*catcma or tpe"):
        build_sampler("cma", {}, seed=1, space=space, workers=1)


def test_conditional_numbers_and_single_points_are_refused() -> None:
    numbers = box(2).distributions
    with pytest.raises(InvalidInput, match="every parameter always exists"):
        CmaSampler(Space(numbers, {"x00": 0.5}, {"x01": ("x00", 0.5)}), seed=1)
    with pytest.raises(InvalidInput, match="nothing to search"):
        CmaSampler(Space({"x": FloatDistribution(0.5, 0.5)}, {"x": 0.5}), seed=1)


def test_several_objectives_are_refused() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=CmaSampler(box(2), seed=1))
    with pytest.raises(InvalidInput, match="one objective"):
        study.ask()


def test_hyperband_is_refused() -> None:
    study = optuna.create_study(pruner=optuna.pruners.HyperbandPruner(), sampler=CmaSampler(box(2), seed=1))
    with pytest.raises(InvalidInput, match="Hyperband"):
        study.ask()


def test_validation_survives_optimised_python() -> None:
    script = """
from optuna.distributions import FloatDistribution
from evomerge.errors import InvalidInput
from evomerge.samplers.cma import CmaSampler
class Space:
    distributions = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}
    centre = {"x": 0.5, "y": 0.5}
    conditional = False
    def is_complete(self, params): return True
for wrong in ({"sigma0": 0.0}, {"sigma0": float("inf")}, {"popsize": 2}):
    try:
        CmaSampler(Space(), seed=1, **wrong)
    except InvalidInput:
        continue
    raise SystemExit(f"{wrong} was accepted")
"""
    subprocess.run([sys.executable, "-O", "-c", script], check=True)


@hypothesis_settings(max_examples=30, deadline=None)
@given(
    losses=st.lists(
        st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, 1.0, 1e300, -1e300]),
        min_size=4,
        max_size=60,
    ),
    dimensions=st.integers(1, 4),
)
def test_whatever_is_told_the_next_proposal_is_in_the_box(losses: list[float], dimensions: int) -> None:
    space = box(dimensions)
    study = optuna.create_study(sampler=CmaSampler(space, seed=1, popsize=4))
    for number, value in enumerate(losses):
        trial = ask(study, space)
        tell(study, trial, value, number)
    assert all(0.0 <= value <= 1.0 for value in ask(study, space).params.values())


@pytest.mark.parametrize("dimensions", [1, 3, 12])
@pytest.mark.parametrize("where", ["plateau", "corner", "slope"])
def test_long_degenerate_searches_stay_alive(dimensions: int, where: str) -> None:
    settings = EvolutionSettings(sigma0=0.2, popsize=4, restarts="none")
    evolution = Evolution(np.full(dimensions, 0.5), [0] * dimensions, 1, settings)
    point = np.zeros(dimensions)
    for number in range(3000):
        if where != "corner":
            point = np.clip(evolution.propose(number), 0.0, 1.0)
        evolution.learn(Evaluation(ordinal=number, point=point, loss=float(point.sum()) if where == "slope" else 0.0))
    proposals = np.array([evolution.propose(number) for number in range(20)])
    assert np.isfinite(proposals).all()
    assert 1e-9 < float(np.max(evolution.strategy._strategy.stds)) < 10.0
