"""The merges that a search space is made of, as its study took them before the first trial."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import optuna

from evomerge.forms import check_form, parse_json, reading
from evomerge.recipe import Recipe
from evomerge.storage import attributes
from evomerge.storage.attributes import read_text


@dataclass(frozen=True, kw_only=True)
class StudyIngredients:
    """Label -> recipe, the best first; and label -> reason of a merge that could not be made."""

    recipes: Mapping[str, Recipe]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def label_of(self, digest: str) -> str | None:
        """The label of the merge with this digest; None where there is none."""
        return next((label for label, recipe in self.recipes.items() if recipe.digest == digest), None)

    def to_json(self) -> str:
        # A list: the order of the labels has a meaning.
        recipes = [{"label": label, "recipe": json.loads(recipe.to_json())} for label, recipe in self.recipes.items()]
        return json.dumps({"recipes": recipes, "left_out": dict(self.left_out)})


def read_ingredients(study: optuna.Study) -> StudyIngredients | None:
    """The merges of a study; None where its space is not made of merges, or has not taken them yet.

    Raises:
        InvalidInput: what is stored is torn.
    """
    text = read_text(study, attributes.INGREDIENTS)
    if text is None:
        return None
    with reading("the merges that the space is made of"):
        content = parse_json(text)
        recipes = {each["label"]: Recipe.from_json(json.dumps(each["recipe"])) for each in content["recipes"]}
        check_form(dict[str, str], content["left_out"])
        return StudyIngredients(recipes=recipes, left_out=content["left_out"])
