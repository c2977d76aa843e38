"""The boundary of a test that is repeated while data come in: the critical value of the statistic at each look.

Alpha spending (Lan & DeMets, 1983): a function gives the part of the error rate that each share of the information may
use up, so that neither the number nor the times of the looks are fixed beforehand. The boundary that uses up
exactly that much is found by integrating the density of the statistic from look to look (Armitage, McPherson & Rowe,
1969), with no Monte Carlo: the same looks give the same boundary.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from evomerge.errors import InvalidInput, unknown_name
from evomerge.evaluation.aggregates import FloatArray

Spending = Literal["pocock", "obrien_fleming"]

_FAR: Final = 9.0  # standard deviations, beyond which there is nothing to integrate
_NEAREST: Final = 0.004  # increase of the information, as a share of it, below which a look is not counted as one
_NODES: Final = 384  # of the quadrature: one per standard deviation of the shortest step that is counted


def pocock(fraction: float, alpha: float) -> float:
    """alpha · ln(1 + (e − 1) t): Lan & DeMets (1983), α₂*. Much is spent early, so that what is bad goes at once."""
    return alpha * math.log1p((math.e - 1) * fraction)


def obrien_fleming(fraction: float, alpha: float) -> float:
    """2 − 2 Φ(z_{alpha/2} / √t): Lan & DeMets (1983), α₁*. Nearly all is kept for the end."""
    return 2 * float(ndtr(ndtri(alpha / 2) / math.sqrt(fraction)))


SPENDING: Final[dict[str, Callable[[float, float], float]]] = {"pocock": pocock, "obrien_fleming": obrien_fleming}


@dataclass(frozen=True, kw_only=True)
class _Look:
    """State of the recursion after a look: its boundary, and the distribution of the races that continue.

    Attributes:
        bound: on the scale of a standard normal; infinite where the look is too close to the one before.
        spent: error rate that is used up.
        information: at the last look that was counted.
        nodes, masses: the law of the Brownian motion B(information) = statistic · √information of the races that
            continue.
    """

    bound: float
    spent: float
    information: float
    nodes: FloatArray
    masses: FloatArray


_START = _Look(bound=math.inf, spent=0.0, information=0.0, nodes=np.zeros(1), masses=np.ones(1))


def boundary(
    fractions: Sequence[float],
    alpha: float,
    spending: Spending = "pocock",
    information: Sequence[float] | None = None,
) -> float:
    """Critical value of a standard normal statistic at the last of these looks, in a one-sided test.

    It depends on the looks so far only. If there is no difference, the chance that the
    statistic reaches the boundary at some look up to a fraction t is `SPENDING[spending](t, alpha)`.

    Args:
        fractions: the clock by which the error rate is spent: a share at every look so far, increasing, in (0, 1].
        alpha: error rate of all looks together.
        information: at every look, increasing: the inverse variance of the estimate, in any unit. The fractions
            themselves where it is not given.

    Raises:
        InvalidInput: fractions that do not increase or are not in (0, 1], information that does not increase or is not
            positive and finite, an error rate that is not in (0, 0.5), or an unknown way to spend it.
    """
    if spending not in SPENDING:
        raise unknown_name("alpha spending", spending, SPENDING)
    if not 0 < alpha < 0.5:
        raise InvalidInput(f"alpha must be between 0 and 0.5, but is {alpha:g}")
    looks = tuple(float(fraction) for fraction in fractions)
    if not looks or not all(
        0 <= before <= after <= 1 and after > 0 for before, after in itertools.pairwise((0.0, *looks))
    ):
        raise InvalidInput(f"the fractions of the looks must increase within (0, 1], but are {list(looks)}")
    known = looks if information is None else tuple(float(each) for each in information)
    if len(known) != len(looks) or not all(
        0 <= before <= after < math.inf and after > 0 for before, after in itertools.pairwise((0.0, *known))
    ):
        raise InvalidInput(f"the information must be positive and increase at {len(looks)} looks, but is {list(known)}")
    both = tuple(zip(looks, known, strict=True))
    for count in range(100, len(both), 100):  # from the first ones, so that the recursion is never deep
        _look(both[:count], alpha, spending)
    return _look(both, alpha, spending).bound


@functools.lru_cache(maxsize=2048)
def _look(looks: tuple[tuple[float, float], ...], alpha: float, spending: str) -> _Look:
    before = _look(looks[:-1], alpha, spending) if len(looks) > 1 else _START
    fraction, information = looks[-1]
    step = math.sqrt(max(0.0, information - before.information))
    target = SPENDING[spending](fraction, alpha)
    if step**2 < _NEAREST * information or target - before.spent < 1e-15:
        # Nothing to spend yet: what this look would have got is left to the next.
        return replace(before, bound=math.inf)
    scale = math.sqrt(information)
    bound = _bound(before, step, scale, target - before.spent)
    low, high = -_FAR * scale, bound * scale
    places, weights = _quadrature()
    nodes = low + (high - low) * places
    steps = (nodes[:, None] - before.nodes) / step
    density = np.exp(-(steps**2) / 2) @ before.masses / (step * math.sqrt(2 * math.pi))
    masses = (high - low) * weights * density
    return _Look(bound=bound, spent=target, information=information, nodes=nodes, masses=masses)


def _bound(before: _Look, step: float, scale: float, spend: float) -> float:
    """The bound at which P(no crossing before, statistic above it now) = spend."""

    def excess(bound: float) -> float:
        return float(before.masses @ ndtr((before.nodes - bound * scale) / step)) - spend

    return float(brentq(excess, -_FAR, _FAR + 1, xtol=1e-12))


@functools.lru_cache(maxsize=1)
def _quadrature() -> tuple[FloatArray, FloatArray]:
    """Gauss-Legendre on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return (nodes + 1) / 2, weights / 2
