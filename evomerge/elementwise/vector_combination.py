"""Weighted sums whose weights differ from tensor to tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from evomerge.elementwise.linear import weighted_sum
from evomerge.tensors.inner_products import vectors_of
from evomerge.tensors.plans import Factors, Formula, Plan
from evomerge.tensors.rule_tensors import Piece, RuleTensors

Coefficients = Callable[[str], Sequence[float]]
"""tensor name -> the coefficient of each source."""


def merge_combination(tensors: RuleTensors, coefficients: Coefficients, *, of: str) -> Iterator[tuple[str, Tensor]]:
    """sum_i c_i theta_i, or theta_0 + sum_i c_i tau_i of the task vectors.

    Args:
        of: `sources` or `task_vectors`.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.
    """
    for name in tensors.names:
        yield name, tensors.merge(name, _kernel(coefficients(name), of))


def plan_combination(coefficients: Coefficients, *, of: str) -> Plan:
    """The formula of `merge_combination`."""
    return Plan(
        formula=Formula(kind="average" if of == "sources" else "sum"),
        factors=lambda name: [Factors(coefficient) for coefficient in coefficients(name)],
    )


def _kernel(coefficients: Sequence[float], of: str) -> Callable[[Piece], Tensor]:
    def merged(piece: Piece) -> Tensor:
        total = weighted_sum(vectors_of(piece, of), coefficients)
        return total if of == "sources" else total.add_(piece.the_base)

    return merged
