"""A model of four layers, three experts, and three merges of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from evomerge.catalogue import TensorCatalogue, build_catalogue
from evomerge.methods import resolve_options
from evomerge.recipe import ModelRef, Recipe, Rule
from evomerge.recipe_spaces.binding import bind_recipe_space
from evomerge.recipe_spaces.recipe_space import RecipeSpace
from evomerge.spaces.space import SearchSpace

BASE = ModelRef("base", "none", fingerprint="f-base")
EXPERTS = [ModelRef(name, "none", fingerprint=f"f-{name}") for name in ("red", "green", "blue")]


@pytest.fixture
def catalogue() -> TensorCatalogue:
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(4)] + ["model.embed_tokens.weight"]
    return build_catalogue(dict.fromkeys(names, ((4, 4), "float32")))


@pytest.fixture
def bound(catalogue: TensorCatalogue) -> Callable[[SearchSpace, list[str]], RecipeSpace]:
    """bound(space, labels) -> the space over this model, its merges not made yet."""
    return lambda space, labels: bind_recipe_space(space, catalogue, BASE, EXPERTS, labels, dtype="float32", seed=3)


@pytest.fixture
def whole(catalogue: TensorCatalogue) -> Callable[..., Recipe]:
    """whole(method, weights, sources, **parameters) -> a recipe with one rule for all tensors."""

    def write(
        method: str, weights: tuple[float, ...], sources: tuple[str, ...] = ("red", "green", "blue"), **more: Any
    ) -> Recipe:
        options = {name: more.pop(name) for name in ("normalize", "trim_scope") if name in more}
        rule = Rule(
            tensors=tuple(sorted(catalogue.names)),
            method=method,
            sources=sources,
            parameters={**more, "weight": weights},
            options=resolve_options(method, options, n_sources=len(sources)),
        )
        return Recipe(base=BASE, sources=tuple(EXPERTS), rules=(rule,), dtype="float32", seed=3)

    return write
