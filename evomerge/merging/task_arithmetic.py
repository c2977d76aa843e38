"""Task arithmetic: the base plus a weighted sum of task vectors."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from evomerge.merging.group import Group
from evomerge.merging.linear import weighted_sum


def merge_task_arithmetic(group: Group) -> Iterator[tuple[str, Tensor]]:
    """theta = theta_0 + sum_i lambda_i tau_i, with tau_i = theta_i - theta_0; lambda_i is the parameter `weight`.

    Editing models with task arithmetic, arXiv 2212.04089. Under `normalize: true` the sum is divided by sum_i lambda_i.

    Yields:
        (name, merged tensor), each once, in the order of the group's names.

    Raises:
        MergeError: `normalize` and the weights sum to zero.
    """
    weights = task_weights(group)
    for name in group.names:
        yield name, group.merge(name, lambda piece: weighted_sum(piece.task_vectors(), weights).add_(piece.the_base))


def task_weights(group: Group) -> tuple[float, ...]:
    """The factor of each task vector."""
    weights = group.per_source("weight")
    if group.options["normalize"]:
        total = group.normalisable(weights)
        return tuple(weight / total for weight in weights)
    return weights
