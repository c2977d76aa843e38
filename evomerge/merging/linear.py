"""Weighted average of models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from evomerge.merging.group import Group


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_i w_i x_i over tensors of one shape and dtype, in source order, in new memory."""
    total = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total += tensor * weight
    return total


def merge_linear(group: Group) -> Iterator[tuple[str, Tensor]]:
    """theta = sum_i w_i theta_i / sum_i w_i, or without the divisor under `normalize: false`.

    Model soups, arXiv 2203.05482; with equal weights the uniform soup.

    Yields:
        (name, merged tensor), each once, in the order of the group's names.

    Raises:
        MergeError: `normalize` and the weights sum to zero.
    """
    weights = group.per_source("weight")
    if group.options["normalize"]:
        total = group.normalisable(weights)
        weights = tuple(weight / total for weight in weights)
    for name in group.names:
        yield name, group.merge(name, lambda piece: weighted_sum(piece.sources, weights))
