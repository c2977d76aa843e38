"""Spherical interpolation between two models."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from evomerge.elementwise.linear import weighted_sum
from evomerge.tensors.plans import Factors, Formula, Plan
from evomerge.tensors.rule_tensors import RuleTensors
from evomerge.tensors.sums import ordered_sum

DOT_THRESHOLD = 0.9995
EPS = 1e-8


def merge_slerp(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """sin((1-t) phi)/sin(phi) A + sin(t phi)/sin(phi) B, with phi the angle between A and B as flattened tensors.

    Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985. A and B keep their norms. Where they are nearly
    parallel or antiparallel (|cos phi| > 0.9995) the result is (1-t) A + t B.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.
    """
    t = tensors.shared("t")
    for name in tensors.names:
        shares = slerp_shares(cosine(tensors, name), t)
        yield name, tensors.merge(name, lambda piece, shares=shares: weighted_sum(piece.sources, shares))  # type: ignore[misc]


def plan_slerp(tensors: RuleTensors) -> Plan:
    """The formula of `merge_slerp`; the cosine of a tensor is computed at most once for a pair of sources."""
    t = tensors.shared("t")
    # Kept by the pair and not by the files of a recipe, which may be others in each candidate.
    cosines = tensors.cache_of_first(2).setdefault("cosines", {})

    def factors(name: str) -> list[Factors]:
        if name not in cosines:
            cosines[name] = cosine(tensors, name)
        return [Factors(share) for share in slerp_shares(cosines[name], t)]

    return Plan(formula=Formula(kind="average"), factors=factors)


def slerp_shares(cosine: float, t: float) -> tuple[float, float]:
    """The factors of A and B."""
    if abs(cosine) > DOT_THRESHOLD:
        return 1 - t, t
    phi = math.acos(cosine)
    return math.sin((1 - t) * phi) / math.sin(phi), math.sin(t * phi) / math.sin(phi)


def cosine(tensors: RuleTensors, name: str) -> float:
    """<u, v> of the normalised tensors; a tensor whose norm is at most EPS stays as it is."""

    def inner(one: int, other: int) -> float:
        pairs = (piece.sources for piece in tensors.pieces(name, [one, other]))
        return ordered_sum(a.double() * b.double() for a, b in pairs)

    norms = [math.sqrt(inner(index, index)) for index in (0, 1)]
    return inner(0, 1) / math.prod(norm if norm > EPS else 1.0 for norm in norms)
