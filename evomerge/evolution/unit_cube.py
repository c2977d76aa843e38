"""Params as points of the unit cube: one coordinate per parameter that has more than one value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from evomerge.errors import InvalidInput

__all__ = ["UnitCube"]


class UnitCube:
    """Translates between params and points of [0, 1]^N.

    Floats are spread evenly over their range, or over its logarithm. The values of steps, integers and categories
    share [0, 1] in bins of equal width, and a value is encoded as the middle of its bin, so that the first and the last
    value are as easy to reach as the others. Integers on a logarithmic scale have bins that become narrower.

    Attributes:
        free: the parameters with more than one value, in the order of the coordinates.
        fixed: the parameters that have only one, with it.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution]) -> None:
        self._axes = {name: _axis(name, distribution) for name, distribution in distributions.items()}
        self.free = {name: distribution for name, distribution in distributions.items() if not distribution.single()}
        self.fixed = {name: axis.decode(0.5) for name, axis in self._axes.items() if name not in self.free}
        self._order = tuple(distributions)
        self._box = _Box.around([self._axes[name] for name in self.free])

    @property
    def bins(self) -> list[int]:
        """For each coordinate the number of its values, 0 where it is continuous."""
        return [self._axes[name].bins for name in self.free]

    def find(self, params: Mapping[str, Any]) -> NDArray[np.float64] | None:
        """The point of params; None where the cube does not contain them."""
        if self._box is not None and all(map(params.__contains__, self.free)):
            values = np.array([params[name] for name in self.free])
            if values.dtype == np.float64:  # no other number, nor a text that looks like one
                return self._box.find(values)
        return self.encode(params) if self.contains(params) else None

    def contains(self, params: Mapping[str, Any]) -> bool:
        """Whether the params have a value inside its range for every free parameter."""
        return all(name in params and self._axes[name].contains(params[name]) for name in self.free)

    def encode(self, params: Mapping[str, Any]) -> NDArray[np.float64]:
        """The point of params that the cube contains."""
        return np.array([self._axes[name].encode(params[name]) for name in self.free], dtype=np.float64)

    def decode(self, point: NDArray[np.float64]) -> dict[str, Any]:
        """The params at a point, as plain Python values, those with a single value included."""
        free = {
            name: self._axes[name].decode(min(max(float(u), 0.0), 1.0))
            for name, u in zip(self.free, point, strict=True)
        }
        return {name: free[name] if name in free else self.fixed[name] for name in self._order}


@dataclass(frozen=True, kw_only=True)
class _Box:
    """Axes that are all continuous and linear, whose values are encoded together."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    width: NDArray[np.float64]

    @classmethod
    def around(cls, axes: Sequence[_Axis]) -> _Box | None:
        """The box of axes; None where one is of another kind, or wider than floats are."""
        linear = [axis for axis in axes if isinstance(axis, _Continuous) and not axis.log]
        width = np.array([axis.high - axis.low for axis in linear])
        if len(linear) < len(axes) or not np.isfinite(width).all():
            return None
        return cls(
            low=np.array([axis.low for axis in linear]), high=np.array([axis.high for axis in linear]), width=width
        )

    def find(self, values: NDArray[np.float64]) -> NDArray[np.float64] | None:
        inside = (self.low <= values) & (values <= self.high)
        return (values - self.low) / self.width if inside.all() else None


class _Axis(Protocol):
    @property
    def bins(self) -> int: ...
    def contains(self, value: Any) -> bool: ...
    def encode(self, value: Any) -> float: ...
    def decode(self, u: float) -> Any: ...


def _axis(name: str, distribution: BaseDistribution) -> _Axis:
    match distribution:
        case CategoricalDistribution():
            return _Category(distribution)
        case FloatDistribution(step=None):
            return _Continuous(low=distribution.low, high=distribution.high, log=distribution.log)
        case IntDistribution(log=True):
            return _LogInteger(distribution.low, distribution.high)
        case FloatDistribution() | IntDistribution():
            return _Grid(distribution)
    raise InvalidInput(f"parameter {name!r} has a distribution that no sampler here knows: {distribution!r}")


@dataclass(frozen=True, kw_only=True)
class _Continuous:
    low: float
    high: float
    log: bool
    bins: int = 0

    def contains(self, value: Any) -> bool:
        return _is_number(value) and self.low <= value <= self.high

    def encode(self, value: Any) -> float:
        x = float(value)
        if not self.log:
            return (x - self.low) / (self.high - self.low)
        low, high = math.log(self.low), math.log(self.high)
        return (math.log(x) - low) / (high - low)

    def decode(self, u: float) -> float:
        if self.log:
            value = math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))
        else:
            value = (1.0 - u) * self.low + u * self.high  # high - low may overflow
        return min(max(value, self.low), self.high)  # rounding may leave the range by one unit in the last place


@dataclass(frozen=True)
class _LogInteger:
    low: int
    high: int

    @property
    def bins(self) -> int:
        return self.high - self.low + 1

    def contains(self, value: Any) -> bool:
        return _is_number(value) and self.low <= value <= self.high

    def encode(self, value: Any) -> float:
        low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
        return (math.log(value) - low) / (high - low)

    def decode(self, u: float) -> int:
        low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
        return min(max(round(math.exp(low + u * (high - low))), self.low), self.high)


@dataclass(frozen=True)
class _Grid:
    distribution: FloatDistribution | IntDistribution

    @property
    def bins(self) -> int:
        return round((self.distribution.high - self.distribution.low) / self._step) + 1

    @property
    def _step(self) -> float:
        return self.distribution.step or 1  # a float without a step is not a grid: see _axis

    def contains(self, value: Any) -> bool:
        return _is_number(value) and self.distribution.low <= value <= self.distribution.high

    def encode(self, value: Any) -> float:
        return (round((float(value) - self.distribution.low) / self._step) + 0.5) / self.bins

    def decode(self, u: float) -> float | int:
        index = min(int(u * self.bins), self.bins - 1)
        value = min(self.distribution.low + index * self._step, self.distribution.high)
        return float(value) if isinstance(self.distribution, FloatDistribution) else int(value)


@dataclass(frozen=True)
class _Category:
    distribution: CategoricalDistribution

    @property
    def bins(self) -> int:
        return len(self.distribution.choices)

    def contains(self, value: Any) -> bool:
        return value in self.distribution.choices

    def encode(self, value: Any) -> float:
        return (float(self.distribution.to_internal_repr(value)) + 0.5) / self.bins

    def decode(self, u: float) -> Any:
        return self.distribution.choices[min(int(u * self.bins), self.bins - 1)]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)  # a union takes ten times as long
