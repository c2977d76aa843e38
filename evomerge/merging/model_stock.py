"""Model Stock: the mean task vector, shortened the more the less its parts agree. arXiv 2403.19522."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import combinations

import torch
from torch import Tensor

from evomerge.elementwise.linear import weighted_sum
from evomerge.elementwise.vector_combination import Coefficients, merge_combination, plan_combination
from evomerge.errors import MergeError
from evomerge.tensors.inner_products import Products, kept_inner_products
from evomerge.tensors.one_thread import one_thread
from evomerge.tensors.plans import Plan
from evomerge.tensors.row_pieces import merge_rows
from evomerge.tensors.rule_tensors import Piece, RuleTensors
from evomerge.tensors.sums import ordered_row_sums

LEAST_DIVISOR = 1e-8
SINGULAR = 1e-6  # divisor, under `opposite: base`
LEAST_LENGTHS = 1e-6  # product of two lengths, under `short: clamp`


@dataclass(frozen=True, kw_only=True)
class StockDefinition:
    """The options that define t, but for `filter_wise`."""

    pair_mean: str = "cosines"
    negative: str = "clip"
    short: str = "exact"
    opposite: str = "reject"

    @property
    def least_lengths(self) -> float:
        return LEAST_LENGTHS if self.short == "clamp" else 0.0


def merge_model_stock(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """theta = theta_0 + t mean_i tau_i, with t = n cos / (1 + (n - 1) cos) for each tensor. arXiv 2403.19522.

    `cos` is the mean over pairs of the cosines between task vectors, or under `pair_mean: angles` the cosine of the
    mean angle; under `negative: clip` at least 0. Under `short: clamp` the product of two lengths, by which their inner
    product is divided, is at least 1e-6. Under `filter_wise: true` each row has a t of its own. A task vector that is
    zero is at right angles with every other. One source alone agrees with itself: t = 1. Under `opposite: base` t is 0
    where the divisor 1 + (n - 1) cos is nearly 0.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.

    Raises:
        MergeError: `negative: raw`, `opposite: reject` and cos = -1 / (n - 1), for which there is no t.
    """
    if not tensors.options["filter_wise"]:
        yield from merge_combination(tensors, _coefficients(tensors), of="task_vectors")
        return
    for name in tensors.names:
        with one_thread():
            merged = merge_rows(tensors, name, lambda piece, name=name: _merge_piece(tensors, name, piece))  # type: ignore[misc]
        yield name, merged
        del merged  # taken: gone before the next is made


def plan_model_stock(tensors: RuleTensors) -> Plan | None:
    """The formula of `merge_model_stock`, or None where rows have shares of their own."""
    return None if tensors.options["filter_wise"] else plan_combination(_coefficients(tensors), of="task_vectors")


def stock_share(products: Products, definition: StockDefinition) -> float | None:
    """t of one tensor, the share of the mean task vector that it keeps; None where there is none.

    Args:
        products: <tau_i, tau_j> of the tensor.
    """
    sources = len(products)
    pairs = [_cosine(products, *pair, definition.least_lengths) for pair in combinations(range(sources), 2)] or [1.0]
    if definition.pair_mean == "angles":
        cosine = math.cos(sum(math.acos(each) for each in pairs) / len(pairs))
    else:
        cosine = sum(pairs) / len(pairs)
    if definition.negative == "clip":
        cosine = max(0.0, cosine)
    divisor = 1 + (sources - 1) * cosine
    if definition.opposite == "base" and abs(divisor) < SINGULAR:
        return 0.0
    return None if abs(divisor) < LEAST_DIVISOR else sources * cosine / divisor


def row_shares(vectors: list[Tensor], definition: StockDefinition) -> tuple[Tensor, Tensor]:
    """t of each row, as `stock_share` has it, and whether it has one.

    Args:
        vectors: the task vectors, each [rows, width].
    """
    sources = len(vectors)
    wide = [vector.double() for vector in vectors]
    lengths = [ordered_row_sums(vector * vector).sqrt() for vector in wide]
    pairs = [torch.ones_like(lengths[0])] if sources == 1 else []
    for one, other in combinations(range(sources), 2):
        length = (lengths[one] * lengths[other]).clamp(min=definition.least_lengths)
        inner = ordered_row_sums(wide[one] * wide[other])
        pairs.append(torch.where(length == 0, 0.0, inner / torch.where(length == 0, 1.0, length)).clamp(-1, 1))
    if definition.pair_mean == "angles":
        cosine = (sum((each.acos() for each in pairs), torch.zeros_like(pairs[0])) / len(pairs)).cos()
    else:
        cosine = sum(pairs, torch.zeros_like(pairs[0])) / len(pairs)
    if definition.negative == "clip":
        cosine = cosine.clamp(min=0)
    divisor = 1 + (sources - 1) * cosine
    if definition.opposite == "base":
        singular = divisor.abs() < SINGULAR
        cosine, divisor = cosine.masked_fill(singular, 0.0), divisor.masked_fill(singular, 1.0)
    return sources * cosine / divisor, ~(divisor.abs() < LEAST_DIVISOR)


def _merge_piece(tensors: RuleTensors, name: str, piece: Piece) -> Tensor:
    vectors = piece.task_vectors()
    shares, known = row_shares(vectors, _definition(tensors))
    if not bool(known.all()):
        raise _no_share(name)
    mean = weighted_sum(vectors, [1 / len(vectors)] * len(vectors))
    return mean.mul_(shares[:, None].to(mean.dtype)).add_(piece.the_base)


def _coefficients(tensors: RuleTensors) -> Coefficients:
    def coefficients(name: str) -> list[float]:
        share = stock_share(kept_inner_products(tensors, name, of="task_vectors"), _definition(tensors))
        if share is None:
            raise _no_share(name)
        return [share / len(tensors.sources)] * len(tensors.sources)

    return coefficients


def _definition(tensors: RuleTensors) -> StockDefinition:
    """The definition of a rule. Recipes from before there was an option do not name it."""
    names = (each.name for each in fields(StockDefinition))
    return StockDefinition(**{name: str(tensors.options[name]) for name in names if name in tensors.options})


def _no_share(name: str) -> MergeError:
    return MergeError(
        f"the task vectors of tensor {name!r} point away from each other, and have no t: take negative: clip, or "
        "opposite: base"
    )


def _cosine(products: Products, one: int, other: int, least_lengths: float) -> float:
    lengths = max(math.sqrt(products[one][one]) * math.sqrt(products[other][other]), least_lengths)
    return max(-1.0, min(1.0, products[one][other] / lengths)) if lengths else 0.0
