"""What the cma sampler adds to one run of CMA-ES: generations on request, restarts, means, ties."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from optuna.trial import TrialState

from evomerge.errors import InvalidInput
from evomerge.evolution.cma_evolution import Evaluation, Evolution, EvolutionSettings, break_ties
from evomerge.samplers import build_sampler
from evomerge.samplers.cma import CmaSampler
from evomerge.seeding import derive
from evomerge.testing.sampler_contract import Space, ask, box, tell

Point = NDArray[np.float64]


def loss(params: dict[str, Any]) -> float:
    return float(sum((1 + number) * (value - 0.7) ** 2 for number, value in enumerate(params.values())))


def simulate(
    build: Callable[[], CmaSampler],
    space: Space,
    *,
    workers: int,
    trials: int,
    seed: int,
    kill: float = 0.0,
    fail: int | None = None,
) -> list[dict[str, Any]]:
    """What asynchronous workers are given, by a controller that is killed and started again at random moments.

    Args:
        kill: the probability that the sampler is built anew, in another study object, before an ask.
        fail: one in so many proposals fails.
    """
    luck, kills = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    storage = optuna.storages.InMemoryStorage()
    sampler = build()
    study = optuna.create_study(storage=storage, study_name="s", sampler=sampler)
    running: list[tuple[float, int, optuna.Trial]] = []
    clock, finished, told = 0.0, 0, 0
    while finished < trials:
        while len(running) < workers and sampler.ready(study):
            if kills.random() < kill:
                sampler = build()
                study = optuna.load_study(storage=storage, study_name="s", sampler=sampler)
            trial = ask(study, space)
            heapq.heappush(running, (clock + luck.lognormal(0.0, 0.3), trial.number, trial))
        clock, number, trial = heapq.heappop(running)
        finished += 1
        if fail and number % fail == fail - 1:
            study.tell(number, state=TrialState.FAIL)
        else:
            tell(study, trial, loss(trial.params), told)
            told += 1
    return [trial.params for trial in study.trials]


def assert_same_candidates_after_kills(mode: str, seed: int, workers: int, mean_every: int) -> None:
    space = box(3)

    def build() -> CmaSampler:
        return CmaSampler(space, seed=3, popsize=4, generation_mode=mode, mean_every=mean_every)

    whole = simulate(build, space, workers=workers, trials=26, seed=seed, fail=7)
    assert simulate(build, space, workers=workers, trials=26, seed=seed, fail=7, kill=0.2) == whole


@pytest.mark.parametrize("mode", ["async", "sync"])
@hypothesis_settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**20), mean_every=st.sampled_from([0, 5]))
def test_a_controller_of_eight_workers_killed_at_any_moment_gives_the_same_candidates(
    mode: str, seed: int, mean_every: int
) -> None:
    assert_same_candidates_after_kills(mode, seed, 8, mean_every)


@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("workers", [1, 3, 32])
@hypothesis_settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**20), mean_every=st.sampled_from([0, 5]))
def test_so_it_does_with_any_number_of_workers(mode: str, workers: int, seed: int, mean_every: int) -> None:
    assert_same_candidates_after_kills(mode, seed, workers, mean_every)


@pytest.mark.parametrize("restarts", ["ipop", "bipop"])
def test_restarts_are_replayed_exactly(restarts: str) -> None:
    space = box(2)
    samplers = []

    def build() -> CmaSampler:
        samplers.append(CmaSampler(space, seed=2, popsize=4, restarts=restarts))
        return samplers[-1]

    whole = simulate(build, space, workers=4, trials=300, seed=5)
    assert simulate(build, space, workers=4, trials=300, seed=5, kill=0.01) == whole
    assert samplers[-1].restarts >= 1


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_generations_are_those_of_a_barrier_whatever_finishes_first(workers: int) -> None:
    space, popsize = box(3), 8

    def build() -> CmaSampler:
        return CmaSampler(space, seed=3, popsize=popsize, generation_mode="sync")

    barrier = evolution(3, popsize=popsize, seed=derive(3, "cma"))
    asked = simulate(build, space, workers=workers, trials=5 * popsize, seed=workers)
    for generation in range(5):
        ordinals = range(generation * popsize, (generation + 1) * popsize)
        points = [barrier.propose(ordinal) for ordinal in ordinals]
        assert [list(asked[ordinal].values()) for ordinal in ordinals] == [pytest.approx(list(p)) for p in points]
        for ordinal, point in zip(ordinals, points, strict=True):
            barrier.learn(
                Evaluation(
                    ordinal=ordinal, point=point, loss=loss({str(axis): value for axis, value in enumerate(point)})
                )
            )


def test_asking_too_early_is_refused_and_ready_says_when() -> None:
    space = box(2)
    sampler = CmaSampler(space, seed=1, popsize=3, generation_mode="sync")
    study = optuna.create_study(sampler=sampler)
    trials = [ask(study, space) for _ in range(3)]
    assert not sampler.ready(study)
    tell(study, trials[1], 1.0, 0)
    assert not sampler.ready(study)
    with pytest.raises(InvalidInput, match="waits for the results of a generation"):
        ask(study, space)
    study.tell(3, state=TrialState.FAIL)  # the one that was refused
    study.tell(trials[0], state=TrialState.FAIL)
    assert sampler.ready(study)
    replacement = ask(study, space)
    assert not sampler.ready(study)
    tell(study, replacement, 2.0, 1)
    tell(study, trials[2], 3.0, 2)
    assert sampler.ready(study)
    assert sampler.generation == 1


def test_without_generations_there_is_no_waiting() -> None:
    space = box(2)
    sampler = CmaSampler(space, seed=1, popsize=3)
    study = optuna.create_study(sampler=sampler)
    for _ in range(10):
        assert sampler.ready(study)
        ask(study, space)


def evolution(dimensions: int, *, popsize: int = 6, seed: int = 1, **settings: Any) -> Evolution:
    given_settings = EvolutionSettings(sigma0=0.2, popsize=popsize, **settings)
    centre = np.array(list(box(dimensions).centre.values()))
    return Evolution(centre, [0] * dimensions, seed, given_settings)


def search(searched: Evolution, value: Callable[[Point], float], evaluations: int) -> None:
    for ordinal in range(evaluations):
        point = searched.propose(ordinal)
        searched.learn(Evaluation(ordinal=ordinal, point=point, loss=value(point)))


def sphere(point: Point) -> float:
    return float(np.sum((point - 0.7) ** 2))


def test_a_search_that_has_converged_begins_again_with_twice_the_population() -> None:
    searched = evolution(2)
    search(searched, sphere, 900)
    assert searched.restarts >= 1
    assert searched.popsize == 6 * 2**searched.restarts
    assert sphere(searched.mean) < 1e-8  # that of the run that came furthest, and not of the one under way


def test_without_restarts_a_search_goes_on() -> None:
    searched = evolution(2, restarts="none")
    search(searched, sphere, 900)
    assert searched.restarts == 0


def test_bipop_takes_turns_between_large_and_small_populations() -> None:
    searched = evolution(2, restarts="bipop", popsize=8)
    sizes: list[int] = []
    for ordinal in range(3000):
        point = searched.propose(ordinal)
        searched.learn(Evaluation(ordinal=ordinal, point=point, loss=sphere(point)))
        if len(sizes) == searched.restarts:
            sizes.append(searched.popsize)
    assert sizes[:2] == [8, 16]
    assert any(size <= 8 for size in sizes[2:])


@pytest.mark.parametrize("value", [lambda _: 0.5, lambda point: round(20 * sphere(point)) / 20])
def test_coarse_values_do_not_end_a_search_that_still_takes_steps(value: Callable[[Point], float]) -> None:
    searched = evolution(4)
    search(searched, value, 600)
    assert set(searched.strategy._strategy.stop()) & {"tolfun", "tolfunhist", "tolflatfitness"}
    assert searched.restarts == 0


def test_results_of_the_run_before_do_not_pull_the_new_one_back() -> None:
    searched, ordinal = evolution(3), 0
    while not searched.restarts:
        late = searched.propose(ordinal)
        searched.learn(Evaluation(ordinal=ordinal, point=late, loss=sphere(late)))
        ordinal += 1
    for number in range(20):
        searched.learn(Evaluation(ordinal=ordinal + number, point=late, loss=sphere(late)))
    assert searched.waiting == 0
    searched.learn(Evaluation(ordinal=ordinal + 20, point=searched.propose(ordinal + 20), loss=1.0))
    assert searched.waiting == 1


def test_the_mean_is_proposed_when_it_is_its_turn_and_is_no_member_of_a_population() -> None:
    searched = evolution(3, mean_every=5)
    for ordinal in range(6):
        point = searched.propose(ordinal)
        assert not np.array_equal(point, searched.mean)  # the first population has none
        searched.learn(Evaluation(ordinal=ordinal, point=point, loss=sphere(point)))
    assert searched.generation == 1
    for ordinal in range(6, 20):
        point, waiting = searched.propose(ordinal), searched.waiting
        assert np.array_equal(point, searched.mean) == (ordinal % 5 == 4)
        searched.learn(Evaluation(ordinal=ordinal, point=point, loss=sphere(point)))
        if ordinal % 5 == 4:
            assert searched.waiting == waiting


def test_the_ordinal_and_not_the_number_of_the_trial_says_whose_turn_it_is() -> None:
    def proposals(*, crash: bool) -> list[dict[str, Any]]:
        space = box(2)
        study = optuna.create_study(sampler=CmaSampler(space, seed=1, popsize=4, mean_every=3))
        asked = []
        for number in range(15):
            if crash and number == 5:
                study.tell(study.ask().number, state=TrialState.FAIL)
            trial = ask(study, space)
            asked.append(trial.params)
            tell(study, trial, loss(trial.params), number)
        return asked

    assert proposals(crash=True) == proposals(crash=False)


def test_equal_values_are_ranked_by_their_companions_and_different_ones_never() -> None:
    def result(number: int, value: float, companion: float) -> Evaluation:
        return Evaluation(ordinal=number, point=np.zeros(1), loss=value, companion=companion)

    tiny = np.nextafter(1.0, 2.0)
    ranked = [result(0, 1.0, 3.0), result(1, 1.0, 2.0), result(2, 1.0, 2.0), result(3, tiny, 9.0), result(4, 5.0, 0.0)]
    losses = break_ties(ranked)
    assert losses[0] < losses[1] == losses[2] < losses[3] < losses[4] == 5.0
    assert losses == pytest.approx([1.0, 1.0, 1.0, 1.0, 5.0])


def test_a_flat_score_with_a_companion_is_searched_by_the_companion() -> None:
    space = box(3)

    def mean(tie_breaker: str | None) -> dict[str, Any]:
        sampler = CmaSampler(space, seed=1, popsize=6, tie_breaker=tie_breaker)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for number in range(150):
            trial = ask(study, space)
            if number % 10:  # some have nothing to say
                trial.set_user_attr("likelihood", -loss(trial.params))
            tell(study, trial, 0.5, number)
        return sampler.mean(study)

    assert loss(mean("likelihood")) < 0.01 < loss(mean(None))


@pytest.mark.parametrize("wrong", [True, "much", None, math.nan])
def test_a_companion_that_is_no_number_ranks_last(wrong: object) -> None:
    sampler = CmaSampler(box(2), seed=1, tie_breaker="likelihood")
    assert sampler._companion(optuna.create_trial(value=0.0, user_attrs={"likelihood": wrong})) == -math.inf
    assert sampler._companion(optuna.create_trial(value=0.0, user_attrs={"likelihood": -2})) == -2.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generation_mode": "both"}, "generation_mode: Input should be 'async' or 'sync'"),
        ({"restarts": "always"}, "restarts: Input should be 'ipop', 'bipop' or 'none'"),
        ({"restarts": True}, "restarts: Input should be 'ipop', 'bipop' or 'none'"),
        ({"mean_every": -1}, "mean_every: Input should be greater than or equal to 0"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_is_right(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        build_sampler("cma", settings, seed=1, space=box(2), workers=1)


@pytest.mark.parametrize("wrong", [{"generation_mode": "x"}, {"restarts": "x"}, {"mean_every": -1}])
def test_the_sampler_itself_refuses_them_too(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        CmaSampler(box(2), seed=1, **wrong)
