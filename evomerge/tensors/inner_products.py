"""Inner products of sources or task vectors, tensor by tensor."""

from __future__ import annotations

from torch import Tensor

from evomerge.tensors.rule_tensors import Piece, RuleTensors
from evomerge.tensors.sums import ordered_sum

Products = tuple[tuple[float, ...], ...]
"""[n, n], <v_i, v_j> of n vectors."""


def inner_products(tensors: RuleTensors, name: str, *, of: str) -> Products:
    """<v_i, v_j> of one tensor, in float64, with the same bits for any number of threads.

    Args:
        of: `sources`, the tensors as they are, or `task_vectors`, their differences from the base.

    Raises:
        InvalidInput: task vectors are wanted and there is no base.
    """
    size = len(tensors.sources)
    sums = [[0.0] * size for _ in range(size)]
    for piece in tensors.pieces(name):
        vectors = [vector.double() for vector in vectors_of(piece, of)]
        for row in range(size):
            for column in range(row + 1):
                sums[row][column] += ordered_sum([vectors[row] * vectors[column]])
    return tuple(tuple(sums[max(row, column)][min(row, column)] for column in range(size)) for row in range(size))


def kept_inner_products(tensors: RuleTensors, name: str, *, of: str) -> Products:
    """`inner_products`, computed once for all candidates."""
    return tensors.cached(("inner products", of, name), lambda: inner_products(tensors, name, of=of))


def vectors_of(piece: Piece, of: str) -> list[Tensor]:
    """The sources of a piece as they are, or their task vectors in new memory."""
    return piece.sources if of == "sources" else piece.task_vectors()
