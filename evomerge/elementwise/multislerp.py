"""Interpolation of directions and of lengths, of any number of models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from evomerge.elementwise.linear import relative_weights
from evomerge.elementwise.vector_combination import Coefficients, merge_combination, plan_combination
from evomerge.errors import MergeError
from evomerge.tensors.inner_products import Products, kept_inner_products
from evomerge.tensors.plans import Plan
from evomerge.tensors.rule_tensors import RuleTensors

CANCELLED = 1e-6  # length of a mean of unit vectors that is nothing but rounding


def merge_multislerp(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """(sum_i w_i |v_i|) d / |d| with d = sum_i w_i v_i / |v_i|, where the w_i are divided by their sum.

    v_i is theta_i as a flattened tensor, or under `vectors: task_vectors` tau_i, and the result is added to the base.
    mergekit writes the same as a step in the tangent space at d / |d|, which is zero with the weights of d. A v_i that
    is zero has no direction; its length counts.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.

    Raises:
        MergeError: all weights are 0, or the directions cancel.
        InvalidInput: there is no base for task vectors.
    """
    return merge_combination(tensors, _coefficients(tensors), of=str(tensors.options["vectors"]))


def plan_multislerp(tensors: RuleTensors) -> Plan:
    """The formula of `merge_multislerp`; inner products are computed once for the sources."""
    return plan_combination(_coefficients(tensors), of=str(tensors.options["vectors"]))


def multislerp_coefficients(products: Products, weights: Sequence[float]) -> list[float] | None:
    """The factor of each v_i, or None where the directions cancel.

    Args:
        products: <v_i, v_j>.
        weights: w_i, of sum 1.
    """
    lengths, cosines = lengths_and_cosines(products)
    sources = range(len(weights))
    squared = math.fsum(weights[i] * weights[j] * cosines[i][j] for i in sources for j in sources)
    moved = any(weight and length for weight, length in zip(weights, lengths, strict=True))
    if moved and squared < CANCELLED**2:
        return None
    length = math.fsum(weight * length for weight, length in zip(weights, lengths, strict=True))
    direction = math.sqrt(squared) if moved else 1.0
    return [length * weights[i] / (lengths[i] * direction) if lengths[i] else 0.0 for i in sources]


def lengths_and_cosines(products: Products) -> tuple[list[float], list[list[float]]]:
    """|v_i|, and the inner products of v_i / |v_i|; a vector that is zero stays zero."""
    lengths = [math.sqrt(row[place]) for place, row in enumerate(products)]
    divisors = [length or 1.0 for length in lengths]
    sources = range(len(products))
    cosines = [[products[i][j] / divisors[i] / divisors[j] for j in sources] for i in sources]
    for i in sources:
        cosines[i][i] = 1.0 if lengths[i] else 0.0
    return lengths, cosines


def _coefficients(tensors: RuleTensors) -> Coefficients:
    weights, of = relative_weights(tensors.per_source("weight")), str(tensors.options["vectors"])

    def coefficients(name: str) -> Sequence[float]:
        found = multislerp_coefficients(kept_inner_products(tensors, name, of=of), weights)
        if found is not None:
            return found
        if tensors.options["opposite"] == "linear of two" and len(weights) == 2:
            return weights
        raise MergeError(f"the weighted directions of tensor {name!r} cancel each other; change the weights")

    return coefficients
