"""Params of a search space from the values of its groups: the inverse of interpolation over depth, by least squares."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from scipy.optimize import lsq_linear


@dataclass(frozen=True)
class Equation:
    """The value of one parameter in one group: the sum of share × param over some params.

    Under a logarithmic range it is the sum of their logarithms that gives the logarithm of the value.
    """

    shares: Mapping[str, float]
    value: float


def solve(equations: Collection[Equation], distributions: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """The params, each within its distribution, that come closest to the values of all equations.

    Params between which nothing is interpolated are the means of their values.
    """
    between = {name for equation in equations if len(equation.shares) > 1 for name in equation.shares}
    alone: dict[str, list[float]] = defaultdict(list)
    for equation in equations:
        if not between & equation.shares.keys():
            (name,) = equation.shares
            alone[name].append(equation.value)
    found = {name: _inside(distributions[name], math.fsum(values) / len(values)) for name, values in alone.items()}
    for system in _systems([equation for equation in equations if between & equation.shares.keys()]):
        found.update(_least_squares(system, distributions))
    return found


def _systems(equations: Sequence[Equation]) -> list[list[Equation]]:
    """Equations in sets that have no param in common."""
    systems: list[tuple[set[str], list[Equation]]] = []
    for equation in equations:
        touched = [system for system in systems if system[0] & equation.shares.keys()]
        names = set(equation.shares).union(*(system[0] for system in touched))
        members = [member for system in touched for member in system[1]]
        systems = [system for system in systems if system not in touched] + [(names, [*members, equation])]
    return [members for _, members in systems]


def _least_squares(system: Sequence[Equation], distributions: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """Control points of one parameter; those that the values leave open are near the values of the groups around."""
    names = list(dict.fromkeys(name for equation in system for name in equation.shares))
    shares = np.array([[equation.shares.get(name, 0.0) for name in names] for equation in system])
    lows, highs = np.array([_ends(distributions[name]) for name in names]).T
    values = np.array([equation.value for equation in system])
    is_log = _is_log(distributions[names[0]])  # all of them are of one range
    if is_log:
        lows, highs, values = np.log(lows), np.log(highs), np.log(np.maximum(values, lows.min()))
    around = np.clip(shares.T @ values / shares.sum(axis=0), lows, highs)
    step = lsq_linear(shares, values - shares @ around, (lows - around, highs - around), method="bvls").x
    points = np.exp(around + step) if is_log else around + step
    return {name: _inside(distributions[name], float(point)) for name, point in zip(names, points, strict=True)}


def _is_log(distribution: BaseDistribution) -> bool:
    return isinstance(distribution, FloatDistribution) and distribution.log


def _ends(distribution: BaseDistribution) -> tuple[float, float]:
    if isinstance(distribution, CategoricalDistribution):
        numbers = _numbers(distribution) or [-math.inf, math.inf]
        return min(numbers), max(numbers)
    assert isinstance(distribution, FloatDistribution)  # no space has another kind
    return distribution.low, distribution.high


def _numbers(distribution: CategoricalDistribution) -> list[float]:
    return [choice for choice in distribution.choices if isinstance(choice, int | float)]


def _inside(distribution: BaseDistribution, value: float) -> Any:
    """The nearest value that the distribution has."""
    if isinstance(distribution, CategoricalDistribution):
        numbers = _numbers(distribution)
        return min(numbers, key=lambda choice: abs(choice - value)) if numbers else distribution.choices[0]
    assert isinstance(distribution, FloatDistribution)  # no space has another kind
    return min(max(value, distribution.low), distribution.high)
