"""The winner without one of its experts: whether that one matters, asked of the items themselves."""

from __future__ import annotations

from collections.abc import Iterator

from evomerge.baselines.baseline_plans import BaselinePlan, Choice, Ingredients
from evomerge.baselines.named_recipes import NamedRecipe, NamedResult
from evomerge.errors import InvalidInput
from evomerge.recipe import Recipe, Rule
from evomerge.recipe_spaces.scaled_rules import check_scalable, scaled
from evomerge.spec import BaselineSpec

WITHOUT_ONE = "without-one"


def without_one(given: Ingredients, baseline: BaselineSpec) -> BaselinePlan:
    """The best on the search items of the merges that the winner is without one expert, the others as they are.

    If the winner beats it, the expert that it lacks has its part in the winner. Nothing is shown of the other experts:
    the merges without them were only worse on the search items, by which this one was chosen.
    """
    if given.best is None:
        raise InvalidInput("the search has not named its best merge yet; run the search first")
    check_scalable(given.best, "the winner")
    tensors = frozenset(name for rule in given.best.rules for name in rule.tensors)
    recipes = {name: scaled(given.best, [(tensors, {name: 0.0})]) for name in weighed_sources(given.best)}
    results = yield [NamedRecipe(label=f"{baseline.name}/{name}", recipe=recipe) for name, recipe in recipes.items()]
    scored = [result for result in results if isinstance(result, NamedResult)]
    if not scored:
        raise InvalidInput("none of the merges without one expert can be scored")
    best = max(scored, key=lambda result: given.objective.value(result.scores))
    return Choice(best.row.recipe, given.search_cost)


def weighed_sources(recipe: Recipe) -> Iterator[str]:
    """The sources beside the base whose weight is not 0 in every rule."""
    for ref in recipe.sources:
        if ref.name == recipe.base.name:
            continue
        if any(_weight(rule, ref.name) for rule in recipe.rules):
            yield ref.name


def _weight(rule: Rule, source: str) -> float:
    weights = rule.parameters.get("weight", 1.0)
    if source not in rule.sources:
        return 0.0
    return weights[rule.sources.index(source)] if isinstance(weights, tuple) else weights
