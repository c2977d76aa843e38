"""DELLA: elements of task vectors are dropped at random, by their rank in the row. arXiv 2406.11617.

The definition is that of mergekit's documentation. That the survivors are divided by their probability, as DARE does,
has not been checked against the paper's text; mergekit restores the L1 norm of the tensor instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evomerge.elementwise.task_arithmetic import merge_scaled
from evomerge.elementwise.ties import Election
from evomerge.tensors.masks import mask_key, uniform_bits
from evomerge.tensors.row_pieces import matrix_shape, row_pieces
from evomerge.tensors.rule_tensors import RuleTensors
from evomerge.tensors.sums import ordered_sum
from evomerge.tensors.task_vectors import TaskVectors

_STEPS = 1 << 24  # of the random numbers
KEPT_BYTES = 4 << 30  # of ranks that a worker keeps; rows beyond that are sorted for every candidate


def merge_della_linear(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """theta = theta_0 + lambda sum_i w_i t_i, with t_i = tau_i m_i / p_i and m_i ~ Bernoulli(p_i) by element.

        p = (density - e) + 2 e (r - 1) / (K - 1)               (1)
        e = spread min(density, 1 - density)                    (2)

    r is the rank of |tau_i| in its row of K elements, the smallest first, of equal ones the one with the smaller index;
    a tensor of one dimension is one row, and in a row of one element p is the density. The masks are a function of
    seed, source position, tensor name and element index, as in DARE, which spread 0 is.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.
    """
    return merge_scaled(tensors, TaskVectors(tensors, RankedDropping(tensors)))


def merge_della(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """The election of TIES (`merge_ties`, arXiv 2306.01708) on the vectors of `merge_della_linear`.

    Yields, Raises:
        As `merge_ties`.
    """
    return Election(tensors, TaskVectors(tensors, RankedDropping(tensors)), None).merge()


def half_width(density: float, spread: float) -> float:
    """e of (2), which mergekit calls epsilon."""
    return spread * min(density, 1 - density)


@dataclass(frozen=True)
class RankedDrop:
    """The change of one tensor of one source's task vector.

    Attributes:
        ranks: int16 or int32, for each element of the flattened tensor its rank in its row, counted from 0.
        width: elements of a row.
        by_probability: survivors are divided by p.
        divisor, factor: of the survivors, apart for the reason that `dropping.Drop` gives.
    """

    key: int
    density: float
    half_width: float
    ranks: Tensor = field(repr=False)
    width: int
    by_probability: bool = False
    divisor: float = 1.0
    factor: float = 1.0

    def __call__(self, start: int, vector: Tensor) -> Tensor:
        """Drop and rescale, in place, the piece of the flattened tensor that begins at element `start`."""
        stop = start + vector.numel()
        kept = self.probabilities(start, stop)
        limits = ((1 - kept) * _STEPS).ceil_()
        vector *= uniform_bits(self.key, start, stop, vector.device) >= limits
        if self.by_probability:
            # Where p is 0 nothing survives.
            vector /= torch.where(kept == 0, 1.0, kept).to(vector.dtype)
        if self.divisor != 1 or self.factor != 1:
            vector.div_(self.divisor).mul_(self.factor)
        return vector

    def probabilities(self, start: int, stop: int) -> Tensor:
        """p of (1), float64."""
        ranks = self.ranks[start:stop].double()
        if self.width == 1:
            return torch.full_like(ranks, self.density)
        return ranks.mul_(2 * self.half_width / (self.width - 1)).add_(self.density - self.half_width)


class RankedDropping:
    """The `RankedDrop` of each source for the tensor that was asked for last."""

    def __init__(self, tensors: RuleTensors) -> None:
        self._tensors = tensors
        self._densities, self._spreads = tensors.per_source("density"), tensors.per_source("spread")
        self._rescale = tensors.options["rescale"]
        self._name = ""
        self._drops: dict[int, RankedDrop | None] = {}

    def __call__(self, source: int, name: str) -> RankedDrop | None:
        """None: the tensor is left as it is."""
        if name != self._name:
            self._name, self._drops = name, {}
        if source not in self._drops:
            self._drops[source] = None if self._densities[source] == 1 else self._drop(source, name)
        return self._drops[source]

    def _drop(self, source: int, name: str) -> RankedDrop:
        density = self._densities[source]
        width = half_width(density, self._spreads[source])
        ranks, columns = _ranks(self._tensors, source, name)
        key = mask_key(self._tensors.seed, source, name)
        plain = RankedDrop(key, density, width, ranks, columns, self._rescale == "1/p")
        if self._rescale != "l1_match":
            return plain
        whole = ordered_sum(piece.abs() for piece in TaskVectors(self._tensors).pieces(source, name))
        masked = TaskVectors(self._tensors, lambda source, name: plain)
        left = ordered_sum(piece.abs() for piece in masked.pieces(source, name))
        if not left > 0:
            return plain
        return RankedDrop(key, density, width, ranks, columns, divisor=left, factor=whole)


def _ranks(tensors: RuleTensors, source: int, name: str) -> tuple[Tensor, int]:
    """`magnitude_ranks`, sorted once for all candidates as long as there is room."""
    if tensors.once:
        return magnitude_ranks(tensors, source, name)
    kept = tensors.cached(("della", "ranks"), dict[tuple[int, str], tuple[Tensor, int]])
    if (source, name) not in kept:
        made = magnitude_ranks(tensors, source, name)
        if made[0].nbytes + sum(ranks.nbytes for ranks, _ in kept.values()) > KEPT_BYTES:
            return made
        kept[source, name] = made
    return kept[source, name]


def magnitude_ranks(tensors: RuleTensors, source: int, name: str) -> tuple[Tensor, int]:
    """The rank of each |tau| in its row, counted from 0, of the flattened tensor, and the width of a row.

    int16 in rows of up to 2**15 elements, else int32.
    """
    like = tensors.like(name)
    width = matrix_shape(like)[1] if like.numel() else 1
    dtype = torch.int16 if width <= 1 << 15 else torch.int32
    ranks = torch.empty(like.numel(), dtype=dtype, device=like.device)
    if like.numel() == 0:
        return ranks, width
    places = torch.arange(width, dtype=dtype, device=like.device)
    for piece in row_pieces(tensors, name, [source]):
        order = piece.task_vectors()[0].abs().argsort(dim=1, stable=True)
        rows = ranks[piece.start : piece.stop].view(-1, width)
        rows.scatter_(1, order, places.expand(len(rows), width))
    return ranks, width
