"""Mixtures of merges (`from: baselines`): in each group a weighted sum of them, with a weight per merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

from optuna.distributions import FloatDistribution

from evomerge.recipe import Recipe, Rule, copying_rule
from evomerge.recipe_spaces.recipe_space import RecipeSpace
from evomerge.spaces.nearest import nearest_params

_WEIGHT = "weight"


def label_of_param(name: str) -> str:
    """The merge whose weight a param is: "learned" of "layers0-1.learned.weight"."""
    return name.removesuffix(f".{_WEIGHT}").rpartition(".")[2]


@dataclass(frozen=True, kw_only=True)
class MixtureSpace(RecipeSpace):
    """Weighted sums of merges: theta_0 + sum_k w_k (theta_k - theta_0) in each group, with theta_k the weights of merge
    k, rounded to its dtype. The weights of a corner are 1 for one merge and 0 for all others, in every group.

    A group in which a single merge has the weight 1 is copied from it. A merge that could not be made has the weight 0
    everywhere.
    """

    @property
    def ingredients(self) -> int:
        """Number of merges that its recipes may name as sources."""
        return len(self.labels)

    @property
    def first_step(self) -> float:
        return 0.5  # benchmarks/merge_spaces.py: better than 0.15 and 1

    def with_recipes(self, made: Mapping[str, Recipe]) -> Self:
        distributions = {
            name: distribution if label_of_param(name) in made else FloatDistribution(0.0, 0.0)
            for name, distribution in self.distributions.items()
        }
        return replace(self, made=dict(made), distributions=distributions)

    @cached_property
    def centre(self) -> dict[str, Any]:
        """The best corner; before the merges have been made, their plain average."""
        if self.made:
            return self.corner(next(iter(self.made)))
        return dict.fromkeys(self.distributions, 1.0 / len(self.labels))

    def corner(self, label: str) -> dict[str, Any]:
        return {name: 1.0 if label_of_param(name) == label else 0.0 for name in self.distributions}

    def params_of(self, recipe: Recipe) -> dict[str, Any] | None:
        label = self.label_of(recipe)
        if label is not None:
            return self.corner(label)
        if not recipe.ingredients or not set(recipe.ingredients) <= set(self.labels):
            return None
        known = {name: made.digest for name, made in self.made.items()}
        if known and any(known.get(name) != each.digest for name, each in recipe.ingredients.items()):
            return None  # merges of the same names that are others
        return nearest_params(self.box, recipe)

    def _between(self, params: Mapping[str, Any]) -> Recipe:
        rules = tuple(self._used(rule) for rule in self.box.decode(params).rules)
        used = {label: self.made[label] for label in self.labels if any(label in rule.sources for rule in rules)}
        models = {model.name for recipe in used.values() for model in recipe.sources}
        return Recipe(
            base=self.base,
            sources=tuple(source for source in self.sources if source.name in models),
            rules=rules,
            dtype=self.dtype,
            seed=self.seed,
            ingredients=used,
        )

    def _used(self, rule: Rule) -> Rule:
        """A group's rule without merges of weight 0."""
        weights = rule.parameters[_WEIGHT]
        assert isinstance(weights, tuple)  # one per merge
        known = {label: weight for label, weight in zip(rule.sources, weights, strict=True) if label in self.made}
        used = {label: weight for label, weight in known.items() if weight} or known
        if list(used.values()) == [1.0]:
            return copying_rule(next(iter(used)), rule.tensors)
        return replace(rule, sources=tuple(used), parameters={_WEIGHT: tuple(used.values())})
