"""The plan of a baseline that cannot be made."""

from __future__ import annotations

from evomerge.baselines.baseline_plans import BaselinePlan, Ingredients
from evomerge.errors import InvalidInput
from evomerge.spec import BaselineSpec


def fail(given: Ingredients, baseline: BaselineSpec) -> BaselinePlan:
    yield []
    raise InvalidInput("planted failure")
