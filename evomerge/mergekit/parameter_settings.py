"""mergekit's parameter settings: a number, a gradient over the layers, or one of these for parts of tensor names."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import isfinite
from typing import Any

from evomerge.catalogue import TensorCatalogue

Setting = float | list[Any]

EVERYTHING = "*"  # a filter that fits every name, as none does


def position(catalogue: TensorCatalogue, name: str) -> Fraction:
    """mergekit's place of a tensor's layer in the stack, from 0 to 1; 0 outside of layers."""
    layer = catalogue[name].layer
    return Fraction(0) if layer is None else place_in_stack(layer, catalogue.depth)


def place_in_stack(layer: int, depth: int) -> Fraction:
    """Place of a layer among `depth` layers. It is exact, so that a gradient of one value a layer has these values."""
    return Fraction(layer, depth - 1) if depth > 1 else Fraction(1)


def evaluate(setting: Any, name: str, place: Fraction, *, switch: bool = False) -> Any:
    """The value that mergekit reads for a tensor: of the first condition that fits, at a place on its gradient.

    A switch has steps in the place of a gradient. None where no condition fits.
    """
    along = on_steps if switch else on_gradient
    for condition in conditions_of(setting):
        if condition.get("filter") in (None, EVERYTHING) or condition["filter"] in name:
            value = condition["value"]
            return along(value, place) if isinstance(value, list) else value
    return None


def conditions_of(setting: Any) -> list[dict[str, Any]]:
    """A setting as conditions, of which one without a filter always fits."""
    if isinstance(setting, dict):
        return [setting]
    if isinstance(setting, list) and setting and isinstance(setting[0], dict):
        return setting
    return [{"value": setting}]


def values_of(setting: Any) -> list[Any]:
    """All numbers and truth values of a setting."""
    values = [condition["value"] for condition in conditions_of(setting)]
    return [each for value in values for each in (value if isinstance(value, list) else [value])]


def on_gradient(values: list[float], place: Fraction) -> float:
    """The value at a place from 0 to 1, linearly interpolated."""
    left, share = divmod(place * (len(values) - 1), 1)
    if not share:
        return float(values[left])
    return float(values[left] + float(share) * (values[left + 1] - values[left]))


def on_steps(values: list[Any], place: Fraction) -> Any:
    """The value at or before a place from 0 to 1, computed in float64 as mergekit does: no place is between two."""
    return values[int(float(place) * (len(values) - 1))]


def faults(setting: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """(keys inside the setting, fault) of everything that mergekit could not read."""
    bare = not isinstance(setting, dict) and not (
        isinstance(setting, list) and setting and isinstance(setting[0], dict)
    )
    for place, condition in enumerate(conditions_of(setting)):
        inside: tuple[str | int, ...] = (place,) if isinstance(setting, list) and not bare else ()
        if not isinstance(condition, dict) or "value" not in condition:
            yield inside, "a setting by names is a list of {filter: PART OF A NAME, value: NUMBER OR LIST}"
            continue
        if unknown := sorted(set(map(str, condition)) - {"filter", "value"}):
            yield inside, f"a condition has `filter` and `value`, not {unknown[0]!r}"
        if not isinstance(condition.get("filter"), str | None):
            yield (*inside, "filter"), "a filter is a part of tensor names"
        values = condition["value"] if isinstance(condition["value"], list) else [condition["value"]]
        numbers = [each for each in values if isinstance(each, int | float) and isfinite(each)]
        if not values or len(numbers) < len(values):
            yield inside if bare else (*inside, "value"), "a value is a number, or a list of numbers"
