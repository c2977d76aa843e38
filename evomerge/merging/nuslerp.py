"""Spherical interpolation between two models or their task vectors, along whole tensors, rows or columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from evomerge.elementwise.linear import relative_weights
from evomerge.elementwise.vector_combination import Coefficients, merge_combination, plan_combination
from evomerge.tensors.inner_products import kept_inner_products, vectors_of
from evomerge.tensors.one_thread import one_thread
from evomerge.tensors.plans import Plan
from evomerge.tensors.row_pieces import matrix_shape, merge_rows, row_pieces
from evomerge.tensors.rule_tensors import Piece, RuleTensors
from evomerge.tensors.sums import ordered_row_sums

LEAST_SINE = 1e-8


def merge_nuslerp(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """(sin((1-t) phi) v_1 + sin(t phi) v_2) / sin phi, with t = w_2 / (w_1 + w_2) and phi the angle of v_1 and v_2.

    v_k is theta_k, or under `vectors: task_vectors` tau_k, and the result is added to the base. Under `units: rows` or
    `columns` each row or column has an angle of its own; a tensor of one dimension is one vector all the same. In a
    stack of matrices rows are along the last dimension, and columns along the first. Where
    |sin phi| < 1e-8 the result is (1-t) v_1 + t v_2. A vector that is zero is at right angles with every other.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.

    Raises:
        MergeError: both weights are 0.
        InvalidInput: there is no base for task vectors.
    """
    units, of = str(tensors.options["units"]), str(tensors.options["vectors"])
    if units == "tensor":
        yield from merge_combination(tensors, _coefficients(tensors), of=of)
        return
    t = _share(tensors)
    for name in tensors.names:
        columns = units == "columns" and tensors.like(name).dim() > 1
        with one_thread():
            merged = _merge_columns(tensors, name, t, of) if columns else _merge_rows(tensors, name, t, of)
        yield name, merged
        del merged  # taken: gone before the next is made


def plan_nuslerp(tensors: RuleTensors) -> Plan | None:
    """The formula of `merge_nuslerp`, or None where rows or columns have angles of their own."""
    if tensors.options["units"] != "tensor":
        return None
    return plan_combination(_coefficients(tensors), of=str(tensors.options["vectors"]))


def nuslerp_shares(products: Iterable[Tensor], t: float) -> tuple[Tensor, Tensor]:
    """The factors of v_1 and v_2.

    Args:
        products: <v_1, v_1>, <v_1, v_2> and <v_2, v_2> of any number of pairs, float64 of one shape.
    """
    first, mixed, second = products
    lengths = (first * second).sqrt()  # in one root, so that the cosine of opposite vectors is exactly -1
    cosine = torch.where(lengths == 0, 0.0, mixed / torch.where(lengths == 0, 1.0, lengths)).clamp(-1, 1)
    angle = cosine.acos()
    sine = angle.sin()
    straight = sine.abs() < LEAST_SINE
    divisor = torch.where(straight, 1.0, sine)
    ahead = torch.where(straight, t, (t * angle).sin() / divisor)
    return torch.where(straight, 1 - t, ((1 - t) * angle).sin() / divisor), ahead


def _share(tensors: RuleTensors) -> float:
    return relative_weights(tensors.per_source("weight"))[1]


def _coefficients(tensors: RuleTensors) -> Coefficients:
    t, of = _share(tensors), str(tensors.options["vectors"])

    def coefficients(name: str) -> list[float]:
        products = torch.tensor(kept_inner_products(tensors, name, of=of), dtype=torch.float64)
        return [float(share) for share in nuslerp_shares([products[0, 0], products[0, 1], products[1, 1]], t)]

    return coefficients


def _merge_rows(tensors: RuleTensors, name: str, t: float, of: str) -> Tensor:
    def merged(piece: Piece) -> Tensor:
        vectors = vectors_of(piece, of)
        shares = nuslerp_shares([ordered_row_sums(each) for each in _pair_products(*vectors)], t)
        return _mixed(piece, vectors, [share[:, None] for share in shares], of)

    return merge_rows(tensors, name, merged)


def _merge_columns(tensors: RuleTensors, name: str, t: float, of: str) -> Tensor:
    like = tensors.like(name)
    if like.numel() == 0:
        return torch.empty(like.shape, dtype=tensors.rounded or tensors.dtype([name]), device=like.device)
    sums = torch.zeros(3, matrix_shape(like, stack=False)[1], dtype=torch.float64, device=like.device)
    for piece in row_pieces(tensors, name, stack=False):
        for total, each in zip(sums, _pair_products(*vectors_of(piece, of)), strict=True):
            total += ordered_row_sums(each.T)
    shares = nuslerp_shares(sums, t)
    return merge_rows(tensors, name, lambda piece: _mixed(piece, vectors_of(piece, of), shares, of), stack=False)


def _pair_products(one: Tensor, other: Tensor) -> tuple[Tensor, ...]:
    one, other = one.double(), other.double()
    return one * one, one * other, other * other


def _mixed(piece: Piece, vectors: Sequence[Tensor], shares: Sequence[Tensor], of: str) -> Tensor:
    one, other = vectors
    total = one * shares[0].to(one.dtype) + other * shares[1].to(one.dtype)
    return total if of == "sources" else total.add_(piece.the_base)
