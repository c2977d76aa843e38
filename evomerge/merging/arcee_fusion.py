"""Fusion of one model with the elements of another whose change matters exceptionally much."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from evomerge.tensors.one_thread import one_thread
from evomerge.tensors.order_statistics import order_statistics
from evomerge.tensors.row_pieces import merge_rows, row_pieces
from evomerge.tensors.rule_tensors import Piece, RuleTensors
from evomerge.tensors.sums import ordered_row_sums

EXCEPTIONAL = 1.5  # interquartile ranges above the median


def merge_arcee_fusion(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """theta = A + (B - A) [S >= median(S) + 1.5 IQR(S)] for every tensor of the sources A and B, with

        S = |B - A| KL(softmax(B) || softmax(A)),  softmax and divergence by row, S by element.

    Quantiles are of all elements of the tensor, interpolated between the two nearest ones or (`quantiles: lower`) the
    lower one. mergekit takes them from 10^6 random places of a larger tensor, unseeded, so that two of its merges
    differ.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.
    """
    for name in tensors.names:
        with one_thread():
            merged = _merge_tensor(tensors, name)
        yield name, merged
        del merged  # taken: gone before the next is made


def importance(first: Tensor, second: Tensor) -> Tensor:
    """S of the rows [rows, width] of two tensors, float64."""
    first, second = first.double(), second.double()
    ours, theirs = _log_softmax(first), _log_softmax(second)
    divergence = ordered_row_sums(theirs.exp() * (theirs - ours)).clamp_(min=0)  # below 0 it is a rounding error
    return (second - first).abs_() * divergence[:, None]


def quantile(ordered: dict[int, float], share: float, elements: int, *, lower: bool = False) -> float:
    """The quantile between the two nearest numbers.

    Args:
        ordered: rank, counted from 1, -> number; at least for the ranks of `nearest_ranks`.
        lower: the lower one, instead of what is between them.
    """
    place = share * (elements - 1)
    low, high = nearest_ranks(share, elements)
    if lower:
        return ordered[low]
    return ordered[low] + (place - math.floor(place)) * (ordered[high] - ordered[low])


def nearest_ranks(share: float, elements: int) -> tuple[int, int]:
    """The ranks, counted from 1, of the numbers at or around a quantile."""
    place = share * (elements - 1)
    return math.floor(place) + 1, math.ceil(place) + 1


def threshold(tensors: RuleTensors, name: str) -> float:
    """median(S) + 1.5 IQR(S) of one tensor that has elements."""
    elements = tensors.like(name).numel()
    shares = (0.25, 0.5, 0.75)
    ranks = sorted({rank for share in shares for rank in nearest_ranks(share, elements)})
    (found,) = order_statistics(
        lambda: ([importance(*piece.sources).reshape(-1)] for piece in row_pieces(tensors, name)),
        [ranks],
        torch.float64,
    )
    ordered = dict(zip(ranks, found, strict=True))
    of_elements = tensors.options["quantiles"] == "lower"
    first, second, third = (quantile(ordered, share, elements, lower=of_elements) for share in shares)
    return second + EXCEPTIONAL * (third - first)


def _merge_tensor(tensors: RuleTensors, name: str) -> Tensor:
    if tensors.like(name).numel() == 0:
        return torch.empty(tensors.like(name).shape, dtype=tensors.dtype([name]), device=tensors.like(name).device)
    least = tensors.cached(("arcee_fusion", tensors.options["quantiles"], name), lambda: threshold(tensors, name))

    def merged(piece: Piece) -> Tensor:
        first, second = piece.sources
        fused = torch.where(importance(first, second) < least, first, second)
        # Not finite in either source is not finite in the result, whichever is taken.
        return torch.where((first - first) + (second - second) == 0, fused, math.nan)

    return merge_rows(tensors, name, merged)


def _log_softmax(rows: Tensor) -> Tensor:
    shifted = rows - rows.amax(dim=1, keepdim=True)
    return shifted - ordered_row_sums(shifted.exp())[:, None].log()
