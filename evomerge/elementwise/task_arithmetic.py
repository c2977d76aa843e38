"""Task arithmetic: the base plus a weighted sum of task vectors."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from evomerge.elementwise.linear import effective_weights, weighted_sum
from evomerge.tensors.plans import Formula, Plan, same_for_all
from evomerge.tensors.rule_tensors import Piece, RuleTensors
from evomerge.tensors.task_vectors import TaskVectors


def merge_task_arithmetic(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """theta = theta_0 + sum_i lambda_i tau_i, with tau_i = theta_i - theta_0; lambda_i is the parameter `weight`.

    Editing models with task arithmetic, arXiv 2212.04089. Under `normalize: true` the sum is divided by sum_i lambda_i.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.

    Raises:
        MergeError: `normalize` and the weights sum to zero.
    """
    weights = effective_weights(tensors)
    for name in tensors.names:
        yield name, tensors.merge(name, lambda piece: weighted_sum(piece.task_vectors(), weights).add_(piece.the_base))


def plan_task_arithmetic(tensors: RuleTensors) -> Plan:
    """The formula of `merge_task_arithmetic`."""
    return Plan(formula=Formula(kind="sum"), factors=same_for_all(effective_weights(tensors)))


def merge_scaled(tensors: RuleTensors, vectors: TaskVectors) -> Iterator[tuple[str, Tensor]]:
    """theta = theta_0 + lambda sum_i w_i t_i, with vectors t_i that a method has made of the task vectors.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.
    """
    weights, factor = tensors.per_source("weight"), tensors.shared("lambda")

    def merged(name: str, piece: Piece) -> Tensor:
        return weighted_sum(vectors.of(name, piece), weights).mul_(factor).add_(piece.the_base)

    for name in tensors.names:
        yield name, tensors.merge(name, lambda piece, name=name: merged(name, piece))  # type: ignore[misc]
