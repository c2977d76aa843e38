"""The merge that a trial grew from, as the study tells it."""

from __future__ import annotations

import optuna

from evomerge.recipe_spaces.corner import nearest_corner
from evomerge.spec import SearchSpec
from evomerge.storage import attributes
from evomerge.study.study_ingredients import read_ingredients
from evomerge.verdict.origin import Origin


def origin_of(spec: SearchSpec, study: optuna.Study, number: int) -> Origin | None:
    """The merge that a trial grew from, or is; None in a space that is not made of other merges."""
    made = read_ingredients(study)
    if made is None:
        return None
    trial = study.get_trials(deepcopy=False)[number]
    itself = made.label_of(trial.user_attrs.get(attributes.RECIPE, ""))
    label = nearest_corner(spec.search_space, trial.params, made.recipes) if itself is None else itself
    return None if label is None else Origin(label, itself is not None)
