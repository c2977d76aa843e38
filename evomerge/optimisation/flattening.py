"""Merges of merges written as one weighted sum of models, for all that knows no ingredients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from evomerge.errors import InvalidInput
from evomerge.methods import method_info
from evomerge.optimisation.coefficients import mean_weights, source_weights
from evomerge.recipe import Recipe, Rule

Weights = dict[str, float]
"""Source name -> weight, the base among the sources."""


def flattened(recipe: Recipe, files: Path | None = None) -> Recipe:
    """The recipe without ingredients: the same weights, but for the rounding of the ingredients.

    A recipe without ingredients is returned as it is.

    Args:
        files: folder of the files of its ingredients: trained coefficients then count by their mean, so that the result
            is only near. None: they are refused.

    Raises:
        InvalidInput: a rule, of the recipe or of an ingredient, is no weighted sum of models.
    """
    if not recipe.ingredients:
        return recipe
    by_weights: dict[tuple[tuple[str, float], ...], list[str]] = defaultdict(list)
    for tensor, weights in _tensor_weights(recipe, files).items():
        by_weights[tuple(sorted((name, weight) for name, weight in weights.items() if weight))].append(tensor)
    order = [source.name for source in recipe.sources if source.name != recipe.base.name] + [recipe.base.name]
    rules = tuple(_sum(tensors, dict(weights), order) for weights, tensors in by_weights.items())
    return Recipe(base=recipe.base, sources=recipe.sources, rules=rules, dtype=recipe.dtype, seed=recipe.seed)


def _sum(tensors: list[str], weights: Weights, order: list[str]) -> Rule:
    used = tuple(name for name in order if name in weights) or (order[-1],)
    return Rule(
        tensors=tuple(tensors),
        method="linear",
        sources=used,
        parameters={"weight": tuple(weights.get(name, 0.0) for name in used)},
        options={"normalize": False},
    )


def _tensor_weights(recipe: Recipe, files: Path | None) -> dict[str, Weights]:
    """Tensor -> its weights; those of the base alone are not named where no rule of the recipe names the tensor."""
    base = recipe.base.name
    made = dict(_of_ingredients(recipe, files))
    found = {}
    for rule in recipe.rules:
        for tensor, weights in _rule_weights(rule, recipe, files).items():
            total: Weights = defaultdict(float)
            for source, weight in weights.items():
                inside = made[source].get(tensor, {base: 1.0}) if source in made else {source: 1.0}
                for name, share in inside.items():
                    total[name] += weight * share
            found[tensor] = dict(total)
    return found


def _of_ingredients(recipe: Recipe, files: Path | None) -> Iterator[tuple[str, dict[str, Weights]]]:
    named = {source for rule in recipe.rules for source in rule.sources}
    for name, ingredient in recipe.ingredients.items():
        if name in named:
            try:
                yield name, _tensor_weights(ingredient, files)
            except InvalidInput as error:
                raise InvalidInput(f"ingredient {name!r}: {error}") from error


def _rule_weights(rule: Rule, recipe: Recipe, files: Path | None) -> dict[str, Weights]:
    """Tensor -> its weights, of sources and ingredients."""
    info = method_info(rule.method)
    if files is None or not info.tensors:
        return dict.fromkeys(rule.tensors, source_weights(rule, recipe.base.name))
    alone = Recipe(base=recipe.base, sources=recipe.sources, rules=(rule,), dtype=recipe.dtype, files=recipe.files)
    means = mean_weights(alone, files)
    if "base" in info.needs:  # they are factors of task vectors
        return {tensor: {recipe.base.name: 1 - sum(weights.values()), **weights} for tensor, weights in means.items()}
    return means
