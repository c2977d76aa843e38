"""Weights of a recipe over depth: for each source and layer the mean weight of its tensors there."""

from __future__ import annotations

import math
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from evomerge.catalogue import layer_of
from evomerge.errors import InvalidInput
from evomerge.optimisation.coefficients import mean_weights
from evomerge.optimisation.flattening import flattened
from evomerge.recipe import Recipe, Rule

OUTSIDE = "outside"


@dataclass(frozen=True)
class DepthWeights:
    """The weights of a recipe.

    Attributes:
        sources: the rows, in the recipe's order. Of a merge of merges that is no weighted sum of the sources: these
            merges.
        columns: "0", "1", … for layers, "outside" for the tensors outside of them; "all" where all are the same.
        values: [rows, columns], NaN where no tensor has a weight.
    """

    sources: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]

    @property
    def largest(self) -> float:
        """The largest weight by size, at least a little above 0."""
        return max((abs(value) for row in self.values for value in row if math.isfinite(value)), default=0.0) or 1e-9


def depth_weights(recipe: Recipe, files: Path) -> DepthWeights | None:
    """The weights of a recipe, trained coefficients by their mean; None where its sources have no weights.

    Args:
        files: folder of the files of recipes; one that is lost leaves its rule out.
    """
    if recipe.layers:
        return None
    with suppress(InvalidInput):  # no weighted sum, or a file is lost: then the merges that it is made of
        recipe = flattened(recipe, files)
    weights = _by_tensor(recipe, files)
    sources = [name for name in _names(recipe) if any(name in each for each in weights.values())]
    if not sources:
        return None
    layers = layer_of(weights)
    cells: dict[tuple[str, int | None], list[float]] = defaultdict(list)
    for tensor, each in weights.items():
        for source, weight in each.items():
            cells[source, layers[tensor]].append(weight)
    places: list[int | None] = [*sorted({layer for layer in layers.values() if layer is not None})]
    places += [None] * any(layer is None for layer in layers.values())
    values = tuple(tuple(_mean(cells.get((source, place), [])) for place in places) for source in sources)
    if all(len(set(row)) == 1 for row in values):
        return DepthWeights(tuple(sources), ("all",), tuple((row[0],) for row in values))
    columns = tuple(OUTSIDE if place is None else str(place) for place in places)
    return DepthWeights(tuple(sources), columns, values)


def _names(recipe: Recipe) -> list[str]:
    named = dict.fromkeys(source for rule in recipe.rules for source in rule.sources)
    order = [source.name for source in recipe.sources if source.name in named and source.name != recipe.base.name]
    return [*order, *(name for name in named if name not in order and name != recipe.base.name)]


def _by_tensor(recipe: Recipe, files: Path) -> dict[str, dict[str, float]]:
    """Tensor -> source -> weight, the base left out."""
    found: dict[str, dict[str, float]] = {}
    for rule in recipe.rules:
        found |= dict.fromkeys(rule.tensors, _weights(rule))
    with suppress(InvalidInput):
        found |= mean_weights(recipe, files)
    base = recipe.base.name
    return {tensor: {name: w for name, w in each.items() if name != base} for tensor, each in found.items() if each}


def _weights(rule: Rule) -> dict[str, float]:
    given = rule.parameters.get("weight")
    if not isinstance(given, tuple):
        return {}
    total = math.fsum(given) if rule.options.get("normalize") else 1.0
    return {source: weight / (total or 1.0) for source, weight in zip(rule.sources, given, strict=True)}


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
