"""LiNeS: task arithmetic whose weight grows in a straight line over depth (arXiv 2410.17146)."""

from __future__ import annotations

from dataclasses import replace

from evomerge.baselines.baseline_plans import BaselinePlan, Ingredients, best_of
from evomerge.baselines.info import LineGrid
from evomerge.documents import validate
from evomerge.errors import InvalidInput
from evomerge.recipe import Recipe
from evomerge.spec import BaselineSpec, SearchSpec


def lines(given: Ingredients, baseline: BaselineSpec) -> BaselinePlan:
    """The weight alpha + beta l / (L - 1) at layer l of L, and alpha outside of the layers, for all task vectors.

    alpha is 1 / n of n experts, which is (|sum tau_i|_1 / |tau_merged|_1) / n where the sum is what is merged. beta is
    the best of a grid on the search items.

    Raises:
        InvalidInput: the model has no layers, or none of the merges can be scored.
    """
    if given.catalogue.depth == 0:
        raise InvalidInput("a line over depth needs layers, but no tensor name has a layer number; use task-arithmetic")
    alpha = 1 / len(given.experts)
    betas = _betas(baseline)
    return (yield from best_of(given, baseline, {beta: line_recipe(given, alpha, beta) for beta in betas}))


def one_per_beta(baseline: BaselineSpec, spec: SearchSpec) -> int:
    return len(_betas(baseline))


def line_recipe(given: Ingredients, alpha: float, beta: float) -> Recipe:
    """Task arithmetic with one rule for each weight, in order of depth."""
    last = max(given.catalogue.depth - 1, 1)
    by_weight: dict[float, list[str]] = {}
    for entry in sorted(given.catalogue.mergeable, key=lambda entry: entry.layer or 0):
        by_weight.setdefault(alpha + beta * (entry.layer or 0) / last, []).append(entry.name)
    rules = []
    for weight, names in by_weight.items():
        (rule,) = given.recipe("task_arithmetic", {"weight": weight}, {}).rules
        rules.append(replace(rule, tensors=tuple(sorted(names))))
    return replace(given.recipe("task_arithmetic", {"weight": alpha}, {}), rules=tuple(rules))


def _betas(baseline: BaselineSpec) -> tuple[float, ...]:
    return validate(LineGrid, baseline.settings, f"baseline {baseline.name!r}").betas
