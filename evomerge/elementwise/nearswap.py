"""One model moved towards another by a limited step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from evomerge.tensors.plans import Formula, Plan, same_for_all
from evomerge.tensors.rule_tensors import Piece, RuleTensors


def merge_nearswap(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """theta = A + clip(B - A, -t, t) by element, with A the first source and B the second.

    An element that differs by at most t is exactly that of B.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.
    """
    limit = tensors.shared("t")

    def merged(piece: Piece) -> Tensor:
        first, second = piece.sources
        step = second - first
        near = step.abs() <= limit
        return torch.where(near, second, step.clamp_(-limit, limit).add_(first))

    for name in tensors.names:
        yield name, tensors.merge(name, merged)


def plan_nearswap(tensors: RuleTensors) -> Plan:
    """The formula of `merge_nearswap`."""
    return Plan(formula=Formula(kind="step"), factors=same_for_all([1.0, 1.0]), scale=tensors.shared("t"))
