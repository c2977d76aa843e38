"""Binding a space of other merges to a model: its params follow from the labels of the merges alone."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.catalogue import TensorCatalogue
from evomerge.errors import InvalidInput
from evomerge.recipe import ModelRef
from evomerge.recipe_spaces.mixture import MixtureSpace
from evomerge.recipe_spaces.neighbourhood import FACTOR, NeighbourhoodSpace
from evomerge.recipe_spaces.recipe_space import RecipeSpace
from evomerge.spaces.bound import bind
from evomerge.spaces.space import MethodSpace, SearchSpace


def bind_recipe_space(
    space: SearchSpace,
    catalogue: TensorCatalogue,
    base: ModelRef,
    experts: Sequence[ModelRef],
    labels: Sequence[str],
    *,
    dtype: str,
    seed: int,
) -> RecipeSpace:
    """Give a space of other merges its tensors, sources and labels.

    Args:
        labels: of the merges that it is made of, in the order of the spec.

    Raises:
        InvalidInput: there are none, or see `evomerge.spaces.bound.bind`.
    """
    if not labels:
        raise InvalidInput(
            f"search space {space.name!r} is made of baselines that are one model and are made before the search, and "
            "the spec names none; name some, such as baselines: [uniform-soup, ties]"
        )
    if space.factor is None:
        box = bind(space, catalogue, base, [ModelRef(label, "") for label in labels], dtype=dtype, seed=seed)
        names = {name: name for name in box.distributions}
        kind: type[RecipeSpace] = MixtureSpace
    else:
        plain = SearchSpace(
            name=space.name,
            groups=space.groups,
            part_patterns=space.part_patterns,
            methods={"task_arithmetic": MethodSpace(parameters={"weight": space.factor})},
        )
        box = bind(plain, catalogue, base, experts, dtype=dtype, seed=seed)
        names = {name: f"{name.removesuffix('weight')}{FACTOR}" for name in box.distributions}
        kind = NeighbourhoodSpace
    return kind(
        space=space,
        base=base,
        sources=tuple(experts),
        groups=box.groups,
        distributions={names[name]: distribution for name, distribution in box.distributions.items()},
        conditions={},
        dtype=dtype,
        seed=seed,
        labels=tuple(labels),
        box=box,
    )
