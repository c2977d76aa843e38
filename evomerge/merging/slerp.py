"""Spherical interpolation between two models."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from evomerge.merging.group import Group
from evomerge.merging.linear import weighted_sum
from evomerge.merging.sums import ordered_sum

DOT_THRESHOLD = 0.9995
EPS = 1e-8


def merge_slerp(group: Group) -> Iterator[tuple[str, Tensor]]:
    """sin((1-t) phi)/sin(phi) A + sin(t phi)/sin(phi) B, with phi the angle between A and B as flattened tensors.

    Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985. A and B keep their norms. Where they are nearly
    parallel or antiparallel (|cos phi| > 0.9995) the result is (1-t) A + t B.

    Yields:
        (name, merged tensor), each once, in the order of the group's names.
    """
    t = group.shared("t")
    for name in group.names:
        shares = slerp_shares(cosine(group, name), t)
        yield name, group.merge(name, lambda piece, shares=shares: weighted_sum(piece.sources, shares))  # type: ignore[misc]


def slerp_shares(cosine: float, t: float) -> tuple[float, float]:
    """The factors of A and B."""
    if abs(cosine) > DOT_THRESHOLD:
        return 1 - t, t
    phi = math.acos(cosine)
    return math.sin((1 - t) * phi) / math.sin(phi), math.sin(t * phi) / math.sin(phi)


def cosine(group: Group, name: str) -> float:
    """<u, v> of the normalised tensors; a tensor whose norm is at most EPS stays as it is."""

    def inner(one: int, other: int) -> float:
        pairs = (piece.sources for piece in group.pieces(name, [one, other]))
        return ordered_sum(a.double() * b.double() for a, b in pairs)

    norms = [math.sqrt(inner(index, index)) for index in (0, 1)]
    return inner(0, 1) / math.prod(norm if norm > EPS else 1.0 for norm in norms)
