"""A baseline of a third party: one expert as it stands, the one that scores worst on the search items."""

from __future__ import annotations

from evomerge.baselines.baseline_plans import BaselinePlan, Choice, Ingredients
from evomerge.baselines.info import BASELINES, BaselineInfo
from evomerge.spec import BaselineSpec

BASELINES["worst-expert"] = BaselineInfo(
    name="worst-expert", plan=f"{__name__}:worst_expert", chosen_on_search_items=True
)


def worst_expert(given: Ingredients, baseline: BaselineSpec) -> BaselinePlan:
    yield []
    worst = min(given.experts, key=lambda ref: given.objective.value(given.references[ref.name]))
    return Choice(given.soup([worst]), given.reference_cost)
