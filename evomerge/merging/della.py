"""DELLA: elements of task vectors are dropped at random, by their rank in the row. arXiv 2406.11617.

The definition is that of mergekit's documentation. That the survivors are divided by their probability, as DARE does,
has not been checked against the paper's text; mergekit restores the L1 norm of the tensor instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from evomerge.elementwise.task_arithmetic import merge_scaled
from evomerge.elementwise.ties import Election, plan_election
from evomerge.tensors.dropping import Drop
from evomerge.tensors.masks import mask_key, uniform_bits
from evomerge.tensors.plans import Factors, Formula, Plan
from evomerge.tensors.rank_masks import drop_by_rank
from evomerge.tensors.row_pieces import matrix_shape, row_pieces
from evomerge.tensors.rule_tensors import RuleTensors
from evomerge.tensors.task_vectors import TaskVectors
from evomerge.tensors.vector_norms import Mask, masked_vector_norm, whole_norm

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


def plan_della_linear(tensors: RuleTensors) -> Plan | None:
    """The formula of `merge_della_linear`, or None where it has none: see `plan_della`."""
    if not _has_formula(tensors):
        return None
    formula = Formula(kind="scaled", ranked=str(tensors.options["rescale"]))
    return replace(_ranked(tensors, formula), scale=tensors.shared("lambda"))


def plan_della(tensors: RuleTensors) -> Plan | None:
    """The formula of `merge_della`.

    None where ranks are not kept.
    """
    election = plan_election(tensors, None, None) if _has_formula(tensors) else None
    if election is None:
        return None
    formula = replace(election.formula, ranked=str(tensors.options["rescale"]))
    return replace(_ranked(tensors, formula), scale=election.scale)


def _has_formula(tensors: RuleTensors) -> bool:
    every = sum(rank_bytes(tensors.like(name).shape) for name in tensors.whole_model) * len(tensors.sources)
    return not tensors.once and every <= KEPT_BYTES


def _ranked(tensors: RuleTensors, formula: Formula) -> Plan:
    """A plan whose statistics are ranks."""
    sources, weights = range(len(tensors.sources)), tensors.per_source("weight")
    densities, spreads = tensors.per_source("density"), tensors.per_source("spread")
    dropping, matched = RankedDropping(tensors), tensors.options["rescale"] == "l1_match"

    def factors(name: str) -> list[Factors]:
        width = matrix_shape(tensors.like(name), stack=False)[1] if tensors.like(name).numel() else 1
        lines = [
            rank_line(density, half_width(density, spread), width)
            for density, spread in zip(densities, spreads, strict=True)
        ]
        drops = [dropping(source, name) for source in sources] if matched else [None] * len(weights)
        keys = [Drop(mask_key(tensors.seed, source, name), 0.0) for source in sources]
        return [
            Factors(
                weight,
                drop=key if drop is None else replace(key, divisor=drop.divisor, factor=drop.factor),
                ranges=(*line, 0.0, 0.0, 0.0),
            )
            for weight, key, drop, line in zip(weights, keys, drops, lines, strict=True)
        ]

    def statistics(name: str) -> list[Tensor]:
        return [_ranks(tensors, source, name)[0] for source in sources]

    return Plan(formula=formula, factors=factors, statistics=statistics)


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
        """Drop and rescale the piece of the flattened tensor that begins at element `start`."""
        stop = start + vector.numel()
        slope, least = self.line
        bits = uniform_bits(self.key, start, stop, vector.device)
        left = drop_by_rank(vector, self.ranks[start:stop], bits, slope=slope, least=least, divided=self.by_probability)
        if self.divisor != 1 or self.factor != 1:
            left.div_(self.divisor).mul_(self.factor)
        return left

    @property
    def line(self) -> tuple[float, float]:
        """(slope, least) of p = slope * rank + least, which is (1)."""
        return rank_line(self.density, self.half_width, self.width)


def rank_line(density: float, half_width: float, width: int) -> tuple[float, float]:
    """(gain in probability from an element to the next larger one of its row, probability of the smallest)."""
    return (2 * half_width / (width - 1), density - half_width) if width > 1 else (0.0, density)


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
        left = masked_vector_norm(self._tensors, source, name, plain, Mask(key, ranks=ranks, line=plain.line))
        if not left > 0:
            return plain
        return replace(plain, divisor=left, factor=whole_norm(self._tensors, source, name))


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
    width = matrix_shape(like, stack=False)[1] if like.numel() else 1
    dtype = _rank_dtype(width)
    ranks = torch.empty(like.numel(), dtype=dtype, device=like.device)
    if like.numel() == 0:
        return ranks, width
    places = torch.arange(width, dtype=dtype, device=like.device)
    for piece in row_pieces(tensors, name, [source], stack=False):
        order = piece.task_vectors()[0].abs().argsort(dim=1, stable=True)
        rows = ranks[piece.start : piece.stop].view(-1, width)
        rows.scatter_(1, order, places.expand(len(rows), width))
    return ranks, width


def rank_bytes(shape: Sequence[int]) -> int:
    """Bytes of the ranks of one source for a tensor of that shape."""
    elements = math.prod(shape)
    width = elements // shape[0] if elements and len(shape) > 1 else elements
    return elements * _rank_dtype(width).itemsize


def _rank_dtype(width: int) -> torch.dtype:
    return torch.int16 if width <= 1 << 15 else torch.int32
