"""Recipes whose coefficients are multiplied: a factor for each source in each group of tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from evomerge.errors import InvalidInput
from evomerge.methods import resolve_options
from evomerge.recipe import Recipe, Rule

LINEAR_IN_WEIGHT = ("task_arithmetic", "linear", "dare_linear", "elected_arithmetic", "column_arithmetic")
"""Methods whose merge is the base plus a sum of terms, each with the `weight` of one source."""

Factors = Sequence[tuple[frozenset[str], Mapping[str, float]]]
"""For each group its tensors, and source -> factor."""


def scaled(recipe: Recipe, factors: Factors) -> Recipe:
    """The recipe with the weights of every source multiplied by its factor in the tensor's group.

    Averages become task arithmetic with their shares as weights, since shares that are multiplied need not sum to 1.
    """
    return replace(recipe, rules=tuple(part for rule in recipe.rules for part in _scaled(rule, recipe, factors)))


def check_scalable(recipe: Recipe, origin: str) -> None:
    """Refuse a recipe whose weights cannot be multiplied.

    Args:
        origin: names it in the error.

    Raises:
        InvalidInput: a rule that is not linear in its weights, or depends on the division into groups.
    """
    if recipe.layers or recipe.ingredients:
        kind = "a path of layers" if recipe.layers else "made of other merges"
        raise InvalidInput(f"{origin} is {kind}, whose coefficients cannot be multiplied; name another merge")
    for rule in recipe.rules:
        if rule.method not in LINEAR_IN_WEIGHT:
            raise InvalidInput(
                f"{origin} is merged by {rule.method}, which is not linear in the weights of its sources; a space "
                f"around a merge is for {', '.join(LINEAR_IN_WEIGHT)}"
            )
        if rule.options.get("trim_scope") == "layer_group":
            raise InvalidInput(
                f"{origin} trims over the groups of its own space (trim_scope: layer_group), which other groups would "
                "change; name a merge that trims each tensor or the whole model"
            )
        if rule.method == "linear" and abs(math.fsum(_shares(rule).values()) - 1) > 1e-6:
            raise InvalidInput(
                f"{origin} is a sum of sources whose weights do not sum to 1 ({sorted(_shares(rule).values())}); name "
                "an average, or task arithmetic"
            )


def _scaled(rule: Rule, recipe: Recipe, factors: Factors) -> Iterator[Rule]:
    for tensors, by_source in factors:
        inside = tuple(name for name in rule.tensors if name in tensors)
        if not inside:
            continue
        part = replace(rule, tensors=inside)
        if all(by_source.get(source, 1.0) == 1.0 for source in rule.sources):
            yield part
        else:
            yield _multiplied(part, recipe.base.name, by_source)


def _multiplied(rule: Rule, base: str, factors: Mapping[str, float]) -> Rule:
    shares = _shares(rule)
    if rule.method != "linear":
        weights = tuple(share * factors.get(source, 1.0) for source, share in shares.items())
        options = {**rule.options, **({"normalize": False} if "normalize" in rule.options else {})}
        return replace(rule, parameters={**rule.parameters, "weight": weights}, options=options)
    # The task vector of the base itself is zero.
    sources = tuple(source for source in rule.sources if source != base)
    return Rule(
        tensors=rule.tensors,
        method="task_arithmetic",
        sources=sources,
        parameters={"weight": tuple(shares[source] * factors.get(source, 1.0) for source in sources)},
        options=resolve_options("task_arithmetic", {}, n_sources=len(sources)),
    )


def _shares(rule: Rule) -> dict[str, float]:
    """Source -> the factor of its term, whether the method divides weights by their sum or not."""
    weights = rule.parameters["weight"]
    each = weights if isinstance(weights, tuple) else (weights,) * len(rule.sources)
    divisor = math.fsum(each) if rule.options.get("normalize") else 1.0
    return {source: weight / divisor for source, weight in zip(rule.sources, each, strict=True)}
