"""Readers of the settings of a sampler: an unknown name, a wrong type or a value out of its range is refused."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from evomerge.errors import InvalidInput, unknown_name

__all__ = ["choice", "flag", "integer", "number", "only"]


def only(sampler: str, settings: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse settings that the sampler does not have."""
    for name in settings:
        if name not in known:
            raise unknown_name(f"setting of sampler {sampler!r}", name, known)


def integer(settings: Mapping[str, Any], name: str, default: int, *, low: int) -> int:
    """An integer that is at least `low`. None, like an absent setting, is the default."""
    value = settings.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise InvalidInput(f"sampler setting {name!r} must be an integer of at least {low}, but got {value!r}")
    return value


def number(settings: Mapping[str, Any], name: str, default: float, *, low: float, high: float = math.inf) -> float:
    """A finite number above `low` (itself excluded) and not above `high`."""
    value = settings.get(name)
    if value is None:
        return default
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (math.isfinite(value) and low < value <= high)
    ):
        limit = f" and at most {high:g}" if math.isfinite(high) else ""
        raise InvalidInput(f"sampler setting {name!r} must be a number above {low:g}{limit}, but got {value!r}")
    return float(value)


def flag(settings: Mapping[str, Any], name: str, default: bool) -> bool:
    """True or false."""
    value = settings.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidInput(f"sampler setting {name!r} must be true or false, but got {value!r}")
    return value


def choice(settings: Mapping[str, Any], name: str, known: Collection[str], default: str) -> str:
    """One of the known names."""
    value = settings.get(name)
    if value is None:
        return default
    if not isinstance(value, str) or value not in known:
        raise InvalidInput(f"sampler setting {name!r} must be one of {', '.join(known)}, but got {value!r}")
    return value
