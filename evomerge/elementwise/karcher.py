"""The Riemannian (Karcher) mean of directions on the sphere, at the mean length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from evomerge.elementwise.linear import relative_weights
from evomerge.elementwise.multislerp import CANCELLED, lengths_and_cosines
from evomerge.elementwise.vector_combination import Coefficients, merge_combination, plan_combination
from evomerge.errors import MergeError
from evomerge.tensors.inner_products import Products, kept_inner_products
from evomerge.tensors.plans import Plan
from evomerge.tensors.rule_tensors import RuleTensors

ROUNDS = 10
TOLERANCE = 1e-5  # length of a step, in radians


def merge_karcher(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """(sum_i a_i |theta_i|) u, with u the point of the sphere whose weighted squared angles to theta_i are the least.

    From u = sum_i a_i u_i, normalised, with u_i = theta_i / |theta_i|, rounds of

        cos phi_i = <u, u_i>                                              (1)
        T = sum_i a_i (phi_i / sin phi_i) (u_i - cos phi_i u)             (2)
        u <- cos |T| u + sin |T| T / |T|                                  (3)

    until |T| < 1e-5, and 10 at most. The a_i are the weights divided by their sum. u stays in the span of the u_i, so
    that its coefficients are all that a round changes. The reading as a Fisher-Rao mean: arXiv 2603.04972.

    A theta_i that is zero has no direction; its length counts.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.

    Raises:
        MergeError: all weights are 0, or the directions cancel.
    """
    return merge_combination(tensors, _coefficients(tensors), of="sources")


def plan_karcher(tensors: RuleTensors) -> Plan:
    """The formula of `merge_karcher`; inner products are computed once for the sources."""
    return plan_combination(_coefficients(tensors), of="sources")


def karcher_coefficients(products: Products, weights: Sequence[float]) -> list[float] | None:
    """The factor of each theta_i, or None where the weighted directions cancel.

    Args:
        products: <theta_i, theta_j>.
        weights: a_i, of sum 1.
    """
    lengths, cosines = lengths_and_cosines(products)
    directed = [weight if length else 0.0 for weight, length in zip(weights, lengths, strict=True)]
    if not any(directed):
        return [0.0] * len(weights)
    start = _length(directed, cosines)
    if start < CANCELLED:
        return None
    shares = [weight / sum(directed) for weight in directed]
    mean = [weight / start for weight in directed]
    for _ in range(ROUNDS):
        step = _step(mean, shares, cosines)
        angle = _length(step, cosines)
        if not angle >= TOLERANCE:  # a NaN ends it, too
            break
        mean = [  # (3)
            math.cos(angle) * each + math.sin(angle) / angle * change for each, change in zip(mean, step, strict=True)
        ]
    length = math.fsum(weight * each for weight, each in zip(weights, lengths, strict=True))
    return [length * each / own if own else 0.0 for each, own in zip(mean, lengths, strict=True)]


def _step(mean: Sequence[float], shares: Sequence[float], cosines: Sequence[Sequence[float]]) -> list[float]:
    """The coefficients of T."""
    projections = [  # (1)
        max(-1.0, min(1.0, math.fsum(one * other for one, other in zip(row, mean, strict=True)))) for row in cosines
    ]
    pulls = []
    for share, projection in zip(shares, projections, strict=True):
        sine = math.sqrt(1 - projection * projection)
        pulls.append(share * math.acos(projection) / sine if sine > 1e-12 else share)
    along = math.fsum(pull * projection for pull, projection in zip(pulls, projections, strict=True))
    return [pull - along * each for pull, each in zip(pulls, mean, strict=True)]  # (2)


def _length(coefficients: Sequence[float], cosines: Sequence[Sequence[float]]) -> float:
    sources = range(len(coefficients))
    squared = math.fsum(coefficients[i] * coefficients[j] * cosines[i][j] for i in sources for j in sources)
    return 0.0 if squared < 0 else math.sqrt(squared)  # a NaN stays one


def _coefficients(tensors: RuleTensors) -> Coefficients:
    weights = relative_weights(tensors.per_source("weight"))

    def coefficients(name: str) -> list[float]:
        found = karcher_coefficients(kept_inner_products(tensors, name, of="sources"), weights)
        if found is None:
            raise MergeError(f"the weighted directions of tensor {name!r} cancel each other; change the weights")
        return found

    return coefficients
