"""A point of the search space that a person or another program asks for, by `evomerge try` or `enqueue_trial`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from evomerge.errors import InvalidInput, nearest
from evomerge.messages import some
from evomerge.spaces.bound import BoundSpace


def misfit(space: BoundSpace, point: Mapping[str, Any]) -> str | None:
    """The reason why a point, or a part of one, is not in the space; None where it is."""
    for name, value in point.items():
        distribution = space.distributions.get(name)
        if distribution is None:
            close = nearest(name, space.distributions)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "the space has no such param"
            return f"param {name!r} does not exist; {hint}"
        if not _contains(distribution, value):
            return f"param {name!r} is {value!r}, but must be {_allowed(distribution)}"
    return None


def check_point(space: BoundSpace, point: Mapping[str, Any]) -> None:
    """Refuse what is no whole point of the space.

    Raises:
        InvalidInput: a param does not exist, is out of its range, is missing, or does not go with a choice.
    """
    if (reason := misfit(space, point)) is not None:
        raise InvalidInput(reason)
    active = list(space.active(point))
    if strange := [name for name in point if name not in active]:
        raise InvalidInput(f"param {strange[0]!r} does not exist with the choices made; leave it out")
    if missing := [name for name in active if name not in point]:
        raise InvalidInput(
            f"{len(missing)} of {len(active)} params are missing ({some(missing)}); give them too, or take them from a "
            "trial or from the centre: --like best, --like 17, --like centre"
        )


def _contains(distribution: BaseDistribution, value: object) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return any(type(value) is type(choice) and value == choice for choice in distribution.choices)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and isinstance(distribution, FloatDistribution) and distribution.low <= value <= distribution.high  # type: ignore[operator]


def _allowed(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return f"one of {', '.join(map(repr, distribution.choices))}"
    return f"from {getattr(distribution, 'low', None)} to {getattr(distribution, 'high', None)}"
