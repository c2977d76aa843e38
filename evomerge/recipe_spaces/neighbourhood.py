"""The neighbourhood of one merge (`around: RECIPE`): its coefficients times a factor per source and group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

from evomerge.errors import InvalidInput
from evomerge.recipe import Recipe
from evomerge.recipe_spaces.recipe_space import RecipeSpace
from evomerge.recipe_spaces.scaled_rules import check_scalable, scaled

FACTOR, _WEIGHT = "factor", "weight"


@dataclass(frozen=True, kw_only=True)
class NeighbourhoodSpace(RecipeSpace):
    """Multiples of the coefficients of one merge. With all factors 1 it is that merge itself."""

    @property
    def first_step(self) -> float:
        return 0.3  # longer ones gain on the search items what is lost on others

    def with_recipes(self, made: Mapping[str, Recipe]) -> Self:
        for label, recipe in made.items():
            check_scalable(recipe, repr(label))
            strange = {model.name for model in recipe.sources} - {model.name for model in (self.base, *self.sources)}
            if strange:
                raise InvalidInput(f"{label!r} merges {', '.join(sorted(strange))}, which are no sources of the search")
        return replace(self, made=dict(made))

    @cached_property
    def centre(self) -> dict[str, Any]:
        return dict.fromkeys(self.distributions, 1.0)

    def corner(self, label: str) -> dict[str, Any]:
        return self.centre

    def params_of(self, recipe: Recipe) -> dict[str, Any] | None:
        return self.centre if self.label_of(recipe) is not None else None

    def _between(self, params: Mapping[str, Any]) -> Recipe:
        weights = {f"{name.removesuffix(FACTOR)}{_WEIGHT}": value for name, value in params.items()}
        (recipe,) = self.made.values()
        factors = []
        for rule in self.box.decode(weights).rules:
            values = rule.parameters[_WEIGHT]
            assert isinstance(values, tuple)  # one per source
            factors.append((frozenset(rule.tensors), dict(zip(rule.sources, values, strict=True))))
        return scaled(recipe, factors)
