"""Plans of the baselines that learn from the calibration items of the experts: coefficients, or all weights."""

from __future__ import annotations

import math

from evomerge.baselines.baseline_plans import BaselinePlan, Ingredients, trained
from evomerge.baselines.training_settings import training_settings
from evomerge.learned.learned_settings import LearnedSettings
from evomerge.spec import BaselineSpec


def learned(given: Ingredients, baseline: BaselineSpec) -> BaselinePlan:
    """Task arithmetic with learned coefficients, from one weight for all experts.

    It is 1 / sqrt(n): of n task vectors that are as long as each other and orthogonal the sum is then as long as one.
    A number for `initial` among the settings takes its place.
    """
    settings = LearnedSettings.model_validate(training_settings(baseline, given.facts))
    method, parameters = {
        "task_vectors": ("task_arithmetic", {}),
        "ties": ("elected_arithmetic", {"density": settings.density}),
        "dare": ("dare_linear", {"drop_rate": 1 - settings.density}),
    }[settings.basis]
    weight = 1 / math.sqrt(len(given.experts))
    return (yield from trained(given, baseline, given.recipe(method, {"weight": weight, **parameters}, {})))


def fine_tune(given: Ingredients, baseline: BaselineSpec) -> BaselinePlan:
    """All weights of the uniform average, trained on the same items: no merge, but what labels are used for else."""
    return (yield from trained(given, baseline, given.soup(given.experts)))
