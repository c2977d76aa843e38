"""Checks of a space of other merges that need neither a model nor these merges."""

from __future__ import annotations

from pathlib import Path

from evomerge.errors import InvalidInput
from evomerge.spaces.space import Range, SearchSpace

MIXTURES = ("task_arithmetic", "linear")


def check_recipe_space(space: SearchSpace) -> None:
    """Refuse a space whose corners are not the merges that it is made of.

    Raises:
        InvalidInput: see the messages.
    """
    where = f"search space {space.name!r}"
    if space.factor is not None:
        _check_range(f"{where}: factor", space.factor, (1.0,), ("no", "groups", "sources", "all"))
    elif space.origin == "baselines":
        if len(space.methods) != 1 or next(iter(space.methods)) not in MIXTURES:
            raise InvalidInput(
                f"{where}: merges of baselines are weighted sums; give one method, {' or '.join(MIXTURES)}, not "
                f"{', '.join(space.methods)}"
            )
        ((method, chosen),) = space.methods.items()
        weight = chosen.parameters.get("weight")
        if not isinstance(weight, Range):
            raise InvalidInput(f"{where}: {method}'s weight is searched; write weight: {{low: -0.25, high: 1.25}}")
        _check_range(f"{where}: weight", weight, (0.0, 1.0), ("no", "groups"))


def _check_range(where: str, value: Range, contained: tuple[float, ...], shared: tuple[str, ...]) -> None:
    if value.low is None or value.high is None or value.divided_by_sources:
        raise InvalidInput(f"{where} needs plain ends; write {{low: …, high: …}}")
    if not value.low <= min(contained) <= max(contained) <= value.high:
        numbers = " and ".join(f"{number:g}" for number in contained)
        raise InvalidInput(f"{where} is from {value.low:g} to {value.high:g}, but has to reach {numbers}")
    if value.shared not in shared:
        raise InvalidInput(f"{where}: the merges need weights of their own; leave shared: {value.shared} out")


def is_recipe_file(around: str) -> bool:
    """Whether a space is around the recipe of a file, and not around a baseline."""
    return Path(around).suffix == ".json"
