"""Models as mergekit's files name them: PLACE or PLACE@REVISION, and an adapter as BASE+ADAPTER."""

from __future__ import annotations

from collections.abc import Collection

from evomerge.recipe import ModelRef, Recipe

_MARKS = {"+": "an adapter", "@": "a revision"}


def model_names(recipe: Recipe, adapters: Collection[str]) -> dict[str, str]:
    """Name in the recipe -> the model as mergekit names it, for the base and all sources.

    Args:
        adapters: names of the sources that are adapters of the base.
    """
    base = _location(recipe.base)
    sources = {
        ref.name: f"{base}+{_location(ref)}" if ref.name in adapters else _location(ref) for ref in recipe.sources
    }
    return {recipe.base.name: base} | sources


def unnameable(recipe: Recipe) -> str:
    """The reason why mergekit cannot name one of the models; empty where it can."""
    for ref in (recipe.base, *recipe.sources):
        for mark, meaning in _MARKS.items():
            for part in (ref.location, ref.revision or ""):
                if mark in part:
                    return f"mergekit takes what is behind the {mark} in {part} for {meaning}; move or link the model"
    return ""


def adapted_model(name: str) -> str | None:
    """The model that an adapter is added to, by its name BASE+ADAPTER; None for a whole model."""
    whole, mark, _ = name.partition("+")
    return whole if mark else None


def own_place(name: str) -> str:
    """The place of the model itself: of BASE+ADAPTER that of the adapter."""
    return name.rpartition("+")[2]


def last_part(name: str) -> str:
    """The last part of a path or a hub id, of an adapter with its base that of the adapter."""
    place = own_place(name)
    return place.rstrip("/").rpartition("/")[2].partition("@")[0] or place


def free_name(name: str, taken: Collection[str]) -> str:
    """The name, with a number behind it where it is taken."""
    names = (name, *(f"{name}-{number}" for number in range(2, len(taken) + 3)))
    return next(each for each in names if each not in taken)


def _location(ref: ModelRef) -> str:
    return f"{ref.location}@{ref.revision}" if ref.revision else ref.location
