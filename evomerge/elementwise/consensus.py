"""Consensus task arithmetic: only the elements that matter to several task vectors. arXiv 2405.07813."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from evomerge.elementwise.linear import weighted_sum
from evomerge.tensors.plans import Factors, Formula, Plan
from evomerge.tensors.rule_tensors import Piece, RuleTensors


def merge_consensus(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """theta = theta_0 + sum_i w_i tau_i where at least k masks are 1, else theta_0, by element.

        M_i = [ |tau_i| > threshold_i |tau - tau_i| ],  tau = sum_i tau_i        (1) TALL masks
        sum_i M_i >= k                                                           (2) consensus; k is `agreement`

    With k = 2 what matters to one task vector alone (selfish) or to none (catastrophic) is the base's. The masks do not
    see the weights.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.
    """
    thresholds, weights = tensors.per_source("threshold"), tensors.per_source("weight")
    least = tensors.shared("agreement")

    def kernel(piece: Piece) -> Tensor:
        vectors = piece.task_vectors()
        whole = weighted_sum(vectors, [1.0] * len(vectors))
        count = vectors[0].new_zeros(vectors[0].shape)
        for vector, threshold in zip(vectors, thresholds, strict=True):
            count += vector.abs() > (whole - vector).abs() * threshold  # (1)
        total = weighted_sum(vectors, weights)
        nothing = (total + whole) * 0.0  # NaN where one of them is not finite, so that this is seen in the result
        return total.where(count >= least, nothing).add_(piece.the_base)  # (2)

    for name in tensors.names:
        yield name, tensors.merge(name, kernel)


def plan_consensus(tensors: RuleTensors) -> Plan:
    """The formula of `merge_consensus`."""
    numbers = zip(tensors.per_source("weight"), tensors.per_source("threshold"), strict=True)
    factors = [Factors(weight, threshold) for weight, threshold in numbers]
    return Plan(formula=Formula(kind="consensus"), factors=lambda name: factors, scale=tensors.shared("agreement"))
