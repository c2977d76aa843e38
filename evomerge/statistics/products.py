"""Inner products of the task vectors of all experts, tensor by tensor: lengths of what experts learned, and angles."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evomerge.errors import InvalidInput
from evomerge.tensors.rule_tensors import RuleTensors, Tensors
from evomerge.tensors.sums import ordered_sum


def task_vector_products(
    base: Tensors, sources: Sequence[Tensors], names: Sequence[str]
) -> dict[str, tuple[tuple[float, ...], ...]]:
    """[n, n], <tau_i, tau_j> of each tensor, in float64, with the same bits for any number of threads.

    Args:
        names: the tensors, each tied one once.

    Raises:
        InvalidInput: a task vector is not finite.
    """
    tensors = RuleTensors(names=tuple(names), base=base, sources=sources, parameters={}, options={})
    return {name: _of_tensor(tensors, name) for name in names}


def _of_tensor(tensors: RuleTensors, name: str) -> tuple[tuple[float, ...], ...]:
    size = len(tensors.sources)
    sums = [[0.0] * size for _ in range(size)]
    for piece in tensors.pieces(name):
        vectors = [vector.double() for vector in piece.task_vectors()]
        for row in range(size):
            for column in range(row + 1):
                sums[row][column] += ordered_sum([vectors[row] * vectors[column]])
    if not all(math.isfinite(value) for row in sums for value in row):
        raise InvalidInput(f"a task vector has values that are not finite in tensor {name!r}; check the sources")
    return tuple(tuple(sums[max(row, column)][min(row, column)] for column in range(size)) for row in range(size))
