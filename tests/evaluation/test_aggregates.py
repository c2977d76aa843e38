"""A task's value is recomputed from what is kept of its items, and is lm-eval's."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.registry import AGGREGATION_REGISTRY
from tiny_pack import TASKS, make_model, make_tokenizer, write_pack

from evomerge.errors import InvalidInput
from evomerge.evaluation import ItemBlock, load_pack
from evomerge.evaluation.aggregates import (
    MEANS,
    RECOMPUTED,
    WEIGHTED,
    aggregate,
    aggregates,
    is_mean,
    standard_error,
)
from evomerge.evaluation.lm_eval.harness_evaluator import HarnessEvaluator
from evomerge.testing.evaluator_contract import candidate


def outcomes_and_weights(kind: str, items: int) -> tuple[list[float], list[float] | None]:
    rng = random.Random(items)
    outcomes = [-rng.expovariate(0.5) for _ in range(items)]
    return outcomes, [float(rng.randint(1, 60)) for _ in range(items)] if kind in WEIGHTED else None


@pytest.mark.parametrize(("value", "found"), [(0.3, True), (0.3 + 1e-6, False), (0.0, False)])
def test_an_unknown_aggregation_that_gives_the_mean_is_recognised_whatever_holds_the_outcomes(
    value: float, found: bool
) -> None:
    outcomes = (0.1, 0.2, 0.6)
    assert is_mean(value, outcomes) is is_mean(value, np.asarray(outcomes)) is found


@pytest.mark.parametrize("items", [1, 2, 7, 40])
@pytest.mark.parametrize("kind", sorted(RECOMPUTED - {"brier_score"}))
def test_every_kind_is_recomputed_as_lm_eval_does(kind: str, items: int) -> None:
    outcomes, weights = outcomes_and_weights(kind, items)
    raw = outcomes if weights is None else list(zip(outcomes, weights, strict=True))
    assert aggregate(kind, outcomes, weights) == pytest.approx(AGGREGATION_REGISTRY[kind](raw), rel=1e-12)


@pytest.mark.parametrize("kind", sorted(RECOMPUTED))
def test_many_samples_at_once_are_each_of_them(kind: str) -> None:
    rows = [outcomes_and_weights(kind, 9), outcomes_and_weights(kind, 9)]
    rows[1][0].reverse()
    together = aggregates(
        kind,
        np.array([outcomes for outcomes, _ in rows]),
        np.array([weights for _, weights in rows]) if kind in WEIGHTED else None,
    )
    assert together == pytest.approx([aggregate(kind, *row) for row in rows], rel=1e-12)


def test_what_cannot_be_recomputed_is_refused() -> None:
    with pytest.raises(InvalidInput, match="aggregation 'custom' cannot be recomputed"):
        aggregate("custom", [1.0])
    with pytest.raises(InvalidInput, match="needs the weight of every item"):
        aggregate("bits_per_byte", [-1.0])


def test_an_infinite_perplexity_is_a_number() -> None:
    assert aggregate("perplexity", [-1e6, -1e6]) == float("inf")


def test_the_median_and_single_items_have_no_standard_error() -> None:
    assert standard_error("median", [1.0, 2.0], None, 2.0) is None
    assert standard_error("custom", [1.0, 2.0], None, 2.0) is None
    assert standard_error("mean", [1.0], None, 1.0) is None
    assert standard_error("mean", [0.0, 1.0], None, 0.5) == pytest.approx(0.5)


MEDIAN = {"metric": "acc", "aggregation": "median", "higher_is_better": True}
CASES = [
    ("toy_pick", "acc", "mean"),
    ("toy_pick", "brier_score", "brier_score"),
    ("toy_write", "exact_match", "mean"),
    ("toy_letter", "acc", "median"),
    ("toy_last", "perplexity", "perplexity"),
    ("toy_read", "word_perplexity", "weighted_perplexity"),
    ("toy_read", "bits_per_byte", "bits_per_byte"),
]


@pytest.mark.parametrize(("task", "metric", "kind"), CASES)
def test_what_a_task_gives_is_recomputed_from_its_items(tmp_path: Path, task: str, metric: str, kind: str) -> None:
    tasks: dict[str, dict[str, Any]] = {**TASKS, "toy_letter": {**TASKS["toy_letter"], "metric_list": [MEDIAN]}}
    pack = load_pack(write_pack(tmp_path / "pack", {"tasks": [{"task": task, "metric": metric}]}, tasks))
    evaluator = HarnessEvaluator(pack, make_tokenizer(), seed=3, batch_size=8)
    scored = evaluator.score(candidate(make_model(0)), ItemBlock("search")).tasks[task]
    assert scored.aggregate == kind
    assert (scored.weights is not None) == (kind in WEIGHTED)
    assert aggregate(scored.aggregate, scored.outcomes, scored.weights) == pytest.approx(scored.value, rel=1e-9)
    if kind in MEANS:
        assert standard_error(kind, scored.outcomes, None, scored.value) == scored.stderr
