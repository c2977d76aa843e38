"""Weighted average of models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from evomerge.errors import MergeError
from evomerge.tensors.plans import Formula, Plan, same_for_all
from evomerge.tensors.rule_tensors import RuleTensors


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_i w_i x_i over tensors of one shape and dtype, in source order, in new memory."""
    total = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total += tensor * weight
    return total


def relative_weights(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights from 0 on, divided by their sum, however small that is.

    Raises:
        MergeError: all are 0.
    """
    largest = max(weights)
    if largest <= 0:
        raise MergeError(f"the weights {list(weights)} are all 0; give at least one source a weight")
    scaled = [weight / largest for weight in weights]
    return tuple(weight / sum(scaled) for weight in scaled)


def merge_linear(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """theta = sum_i w_i theta_i / sum_i w_i, or without the divisor under `normalize: false`.

    Model soups, arXiv 2203.05482; with equal weights the uniform soup.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.

    Raises:
        MergeError: `normalize` and the weights sum to zero.
    """
    weights = effective_weights(tensors)
    for name in tensors.names:
        yield name, tensors.merge(name, lambda piece: weighted_sum(piece.sources, weights))


def plan_linear(tensors: RuleTensors) -> Plan:
    """The formula of `merge_linear`."""
    return Plan(formula=Formula(kind="average"), factors=same_for_all(effective_weights(tensors)))


def effective_weights(tensors: RuleTensors) -> tuple[float, ...]:
    """The factor of each source or task vector: w_i, divided by their sum under `normalize: true`."""
    weights = tensors.per_source("weight")
    if tensors.options["normalize"]:
        total = tensors.normalisable(weights)
        return tuple(weight / total for weight in weights)
    return weights
