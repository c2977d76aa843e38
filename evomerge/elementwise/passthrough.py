"""One model, times a number."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from evomerge.elementwise.linear import weighted_sum
from evomerge.tensors.plans import Formula, Plan, same_for_all
from evomerge.tensors.rule_tensors import RuleTensors


def merge_passthrough(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """theta = scale theta_1.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.
    """
    scale = tensors.per_source("scale")
    for name in tensors.names:
        yield name, tensors.merge(name, lambda piece: weighted_sum(piece.sources, scale))


def plan_passthrough(tensors: RuleTensors) -> Plan:
    """The formula of `merge_passthrough`."""
    return Plan(formula=Formula(kind="average"), factors=same_for_all(tensors.per_source("scale")))
