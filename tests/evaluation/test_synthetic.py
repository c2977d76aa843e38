from __future__ import annotations

import math
import subprocess
import sys
import time
from typing import Any

import pytest

from evomerge.errors import InvalidInput, MergeError
from evomerge.evaluation import Candidate, Evaluator, ItemBlock, Split, find_evaluator, known_evaluators
from evomerge.evaluation.synthetic import EXIT_STATUS, SyntheticEvaluator, SyntheticSettings
from evomerge.testing.evaluator_contract import EvaluatorContract, candidate

BOUNDS = {"a": (0.0, 1.0), "b": (-2.0, 2.0), "c": (0.1, 0.9)}
SEARCH = ItemBlock("search")


class TestSyntheticContract(EvaluatorContract):
    def build(self, seed: int = 3, split: Split | None = None) -> Evaluator:
        return SyntheticEvaluator({"tasks": 3, "noise": 0.02}, bounds=BOUNDS, seed=seed, split=split)

    def candidates(self) -> tuple[Candidate, Candidate]:
        return candidate(params={"a": 0.3, "b": 0.5, "c": 0.4}), candidate(params={"a": 0.9, "b": -1.9, "c": 0.2})


def evaluator(**settings: Any) -> SyntheticEvaluator:
    return SyntheticEvaluator(settings, bounds=BOUNDS, seed=1)


def in_box(point: dict[str, float]) -> dict[str, float]:
    return {name: low + point[name] * (high - low) for name, (low, high) in BOUNDS.items()}


@pytest.mark.parametrize("function", ["sphere", "valley", "plateau"])
def test_nothing_scores_better_than_the_optimum(function: str) -> None:
    simulated = evaluator(function=function)
    optimum = simulated.optimum("task_0")
    assert all(0.2 <= coordinate <= 0.8 for coordinate in optimum.values())
    best = simulated.probability(in_box(optimum), "task_0")
    assert best == pytest.approx(0.95)
    for step in (-0.19, -0.05, 0.05, 0.19):
        for name in BOUNDS:
            assert simulated.probability(in_box({**optimum, name: optimum[name] + step}), "task_0") <= best


def test_a_better_candidate_answers_every_item_that_a_worse_one_answers() -> None:
    simulated = evaluator(conflict=0.0)
    optimum = simulated.optimum("task_0")
    good = simulated.score(candidate(params=in_box(optimum)), SEARCH).tasks["task_0"]
    bad = simulated.score(candidate(params=in_box({**optimum, "a": 1.0, "b": 0.0})), SEARCH).tasks["task_0"]
    assert good.value > bad.value
    assert all(better >= worse for better, worse in zip(good.outcomes, bad.outcomes, strict=True))


def test_choices_and_missing_params_are_accepted_and_unknown_ones_named() -> None:
    simulated = evaluator()
    assert simulated.score(candidate(params={"method": "ties"}), SEARCH).tasks
    assert simulated.score(candidate(), SEARCH).tasks
    with pytest.raises(InvalidInput, match="needs bounds for each"):
        simulated.score(candidate(params={"d": 0.5}), SEARCH)


def test_noise_is_the_candidates_own_and_the_same_every_time() -> None:
    params = in_box({"a": 0.9, "b": 0.1, "c": 0.9})
    noisy = evaluator(noise=0.1)
    assert noisy.probability(params, "task_0") == noisy.probability(dict(reversed(params.items())), "task_0")
    assert noisy.probability(params, "task_0") != evaluator().probability(params, "task_0")


def test_planted_failures_hit_their_share_of_the_candidates_always_the_same() -> None:
    simulated = evaluator(raising=0.3, not_a_number=0.2)

    def outcome(number: int) -> str:
        try:
            scores = simulated.score(candidate(params={"a": number / 300}), SEARCH)
        except MergeError:
            return "raised"
        return "nan" if math.isnan(scores.tasks["task_0"].value) else "scored"

    drawn = [outcome(number) for number in range(300)]
    assert drawn == [outcome(number) for number in range(300)]
    assert 60 < drawn.count("raised") < 120
    assert 35 < drawn.count("nan") < 85


def test_a_candidate_can_end_the_process() -> None:
    code = (
        "from evomerge.evaluation import Candidate, ItemBlock\n"
        "from evomerge.evaluation.synthetic import SyntheticEvaluator\n"
        "SyntheticEvaluator({'exiting': 1.0}, bounds={'x': (0, 1)})"
        ".score(Candidate(key='k', params={'x': 0.5}, recipe=None, model=None), ItemBlock('search'))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == EXIT_STATUS


def test_scoring_takes_as_long_as_the_settings_say() -> None:
    started = time.perf_counter()
    evaluator(delay_seconds=0.05).score(candidate(), SEARCH)
    assert time.perf_counter() - started >= 0.05


def test_it_needs_neither_a_model_nor_torch() -> None:
    def load() -> Any:
        raise AssertionError("the model was asked for")

    assert evaluator().score(candidate(load=load), SEARCH).tasks
    code = (
        "import sys, evomerge.evaluation.synthetic\n"
        "print([name for name in ('torch', 'lm_eval', 'datasets', 'transformers') if name in sys.modules])\n"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "[]"


@pytest.mark.parametrize("settings", [{"itmes": 10}, {"items": 5}, {"raising": 0.7, "exiting": 0.7}])
def test_wrong_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="evaluator 'synthetic'"):
        SyntheticEvaluator(settings)


def test_it_is_found_by_name() -> None:
    assert "synthetic" in known_evaluators()
    assert find_evaluator("synthetic") is SyntheticEvaluator


def test_an_unknown_evaluator_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="unknown evaluator 'no-such-thing'"):
        find_evaluator("no-such-thing")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        SyntheticSettings().tasks = 5  # type: ignore[misc]
