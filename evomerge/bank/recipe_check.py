"""Checks that a bank can merge a recipe: it has the recipe's models, and does the arithmetic that the recipe means."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from evomerge.catalogue import TensorCatalogue
from evomerge.checkpoints.stacked_source import check_layers
from evomerge.errors import InvalidInput
from evomerge.passes.kernels import DTYPES
from evomerge.recipe import SEMANTICS_VERSION, Recipe, all_ingredients, check_ingredients


def check_recipe(
    recipe: Recipe, *, fingerprints: Mapping[str, str | None], dtype: torch.dtype, catalogue: TensorCatalogue
) -> None:
    """Refuse a recipe of other models, another dtype or another arithmetic, and a path that cannot be followed.

    Ingredients may have another dtype than the recipe.

    Args:
        fingerprints: name -> fingerprint of each model in the bank.
        dtype: of its live model.
        catalogue: of its base.

    Raises:
        InvalidInput: names what differs.
    """
    check_ingredients(recipe)
    for path, each in (("", recipe), *all_ingredients(recipe)):
        if each.semantics != SEMANTICS_VERSION:
            raise InvalidInput(
                f"{f'ingredient {path!r}' if path else 'the recipe'} was made with semantics version {each.semantics}, "
                f"this is {SEMANTICS_VERSION}; rebuild it with the release of evomerge that made it"
            )
    for ref in (recipe.base, *recipe.sources):  # those of the ingredients included
        if ref.fingerprint != fingerprints.get(ref.name):
            raise InvalidInput(f"the recipe's source {ref.name!r} ({ref.fingerprint}) is not in this bank")
    if DTYPES[recipe.dtype] is not dtype:
        raise InvalidInput(f"the recipe is in {recipe.dtype}, the bank in {str(dtype).removeprefix('torch.')}")
    if recipe.layers:
        check_layers(recipe, catalogue)
