"""A bound space whose merges are made of other merges: known by their labels first, and as recipes later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

from evomerge.errors import InvalidInput
from evomerge.recipe import Recipe
from evomerge.spaces.bound import BoundSpace


@dataclass(frozen=True, kw_only=True)
class RecipeSpace(BoundSpace):
    """A space of other merges. Its params follow from their labels; decoding waits for `with_recipes`.

    Its corners are these merges themselves, bit for bit: the first points of a search, the best first. The sampler
    begins at the best one.

    Attributes:
        labels: of the merges, in the order of the spec.
        box: the space of the numbers alone, which has groups, distributions and one rule per group.
        made: label -> recipe, the best first. Empty until they have been made; a label that is missing then could not
            be made.
    """

    labels: tuple[str, ...]
    box: BoundSpace
    made: Mapping[str, Recipe] = field(default_factory=dict)

    @property
    def first_step(self) -> float:
        """A sampler's first steps, as a share of the usual ones."""
        raise NotImplementedError

    def with_recipes(self, made: Mapping[str, Recipe]) -> Self:
        """The space with its merges, the best first.

        Raises:
            InvalidInput: a merge that the space cannot be made of.
        """
        raise NotImplementedError

    def corner(self, label: str) -> dict[str, Any]:
        """The params that are one of the merges."""
        raise NotImplementedError

    def params_of(self, recipe: Recipe) -> dict[str, Any] | None:
        """The params of a recipe of this space; None for another one."""
        raise NotImplementedError

    def label_of(self, recipe: Recipe) -> str | None:
        """The label of the merge that a recipe is; None if it is none of them."""
        return next((label for label, made in self.made.items() if made.digest == recipe.digest), None)

    @cached_property
    def initial(self) -> tuple[Mapping[str, Any], ...]:
        """The corners, the best first."""
        return tuple(self.corner(label) for label in self.made)

    def decode(self, params: Mapping[str, Any]) -> Recipe:
        """The recipe of the params. Pure: the same params always give the same recipe.

        Raises:
            InvalidInput: params are missing, or the merges have not been made yet.
        """
        if not self.made:
            raise InvalidInput(
                f"search space {self.space.name!r} is made of {', '.join(self.labels)}, which have not been made yet; "
                "`evomerge run` makes them before the first trial"
            )
        missing = [name for name in self.distributions if name not in params]
        if missing:
            raise InvalidInput(f"params are incomplete: {missing[0]} is missing")
        for label, corner in zip(self.made, self.initial, strict=True):
            if corner == {name: params[name] for name in corner}:
                return self.made[label]
        return self._between(params)

    def _between(self, params: Mapping[str, Any]) -> Recipe:
        """The recipe of params that are no corner."""
        raise NotImplementedError
