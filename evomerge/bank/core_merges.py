"""Merges in core space: coordinates are merged, and the merged tensor is made of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from evomerge.adapters import LowRank
from evomerge.adapters.core_space import CoreSpace, check_core_space
from evomerge.errors import InvalidInput
from evomerge.merging import RuleTensors, merge_rule
from evomerge.methods import method_info
from evomerge.passes.threshold_tables import ThresholdTables
from evomerge.recipe import Recipe, Rule, all_ingredients


@dataclass(frozen=True)
class _Held:
    """The core space of some sources, with what no candidate changes there."""

    space: CoreSpace
    tables: ThresholdTables
    cache: MutableMapping[Hashable, Any] = field(default_factory=dict)


class CoreMerges:
    """Core spaces by their sources, each made when a rule first needs it.

    Args:
        weights: source name -> its tensors.
        base: the name of the base.
        names: the tensors of floating-point numbers.
    """

    def __init__(self, weights: Mapping[str, Mapping[str, torch.Tensor]], base: str, names: Sequence[str]) -> None:
        self._weights = weights
        self._base = base
        self._names = tuple(names)
        self._held: dict[tuple[str, ...], _Held] = {}

    def check(self, recipe: Recipe) -> None:
        """Refuse a recipe that merges in core space what has none, or has an ingredient that does.

        Raises:
            InvalidInput: names the source or the method.
        """
        for each in (recipe, *(ingredient for _, ingredient in all_ingredients(recipe))):
            if each.space == "core":
                check_core_space(each.rules, self._weights, self._base)

    def merge(self, rule: Rule, tensors: RuleTensors) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, merged tensor) of a rule; last those that no source changes, as the base has them.

        Args:
            tensors: of the rule, outside of core space.
        """
        for name, merged in self.coordinates(rule, tensors):
            yield name, self._of(rule.sources).space.tensor(name, merged)
        changed = set(self._of(rule.sources).space.names)
        for name in rule.tensors:
            if name not in changed:
                yield name, self._weights[self._base][name]

    def coordinates(self, rule: Rule, tensors: RuleTensors) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, merged coordinates) of the tensors that some source changes; see `CoreSpace`."""
        held = self._of(rule.sources)
        changed = set(held.space.names)
        names = tuple(name for name in rule.tensors if name in changed)
        if names:
            yield from merge_rule(
                rule.method,
                replace(
                    tensors,
                    names=names,
                    base=held.space.base,
                    sources=held.space.sources,
                    thresholds=held.tables,
                    scope_names=held.space.names,
                    rounded=None,
                    cache=held.cache,
                    prefix_cache=None,
                ),
            )
            held.tables.save()  # gives back the memory that they were made in

    def products(self, recipe: Recipe, tensors_of: Callable[[Rule, Recipe], RuleTensors]) -> dict[str, LowRank]:
        """Tensor name -> what the merge adds to the base's tensor, for a merge that is an adapter of the base.

        That is one in core space, or a weighted sum of task vectors, which is the same in core space.

        Args:
            tensors_of: the tensors of a rule, outside of core space.

        Raises:
            InvalidInput: it is no adapter; names the rule, the source or the tensor.
        """
        if recipe.layers or recipe.ingredients:
            raise InvalidInput("a merge with a path of layers or with ingredients is no adapter; export it as a model")
        for rule in recipe.rules:
            if recipe.space != "core" and not method_info(rule.method).weighted_sum:
                raise InvalidInput(
                    f"a merge by {rule.method} of the weights themselves is no adapter, whose changes have low rank; "
                    "export it as a model, or search with `space: core`"
                )
        self.check(replace(recipe, space="core"))
        products = {}
        for rule in recipe.rules:
            space = self._of(rule.sources).space
            for name, merged in self.coordinates(rule, tensors_of(rule, recipe)):
                product = space.product(name, merged)
                if product is None:
                    raise InvalidInput(
                        f"an adapter changes {name} as a whole, not by factors of low rank, and so does the merge; "
                        "export it as a model"
                    )
                if product.rank:
                    products[name] = product
        return products

    def _of(self, sources: tuple[str, ...]) -> _Held:
        if sources not in self._held:
            space = CoreSpace(self._weights[self._base], [self._weights[name] for name in sources], self._names)
            self._held[sources] = _Held(space, ThresholdTables(space.base, space.sources))
        return self._held[sources]
