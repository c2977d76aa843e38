"""PCB-Merging: task vectors compete element by element, within themselves and with each other. arXiv 2410.02396.

    A_i     = |tau_i| clipped to its order statistics int(d c) and int(d (1 - c)) - 1, counted from 0
    C_i     = sign(tau_i) A_i        mm(x) = (x - min x) / (max x - min x), 0 for a constant x
    beta_i  = intra_i inter_i        intra_i = exp(n mm(A_i)^2), inter_i by the variant
    S_i     = mm(max(beta_i, b_i))   b_i the order statistic int(d (1 - r)) of beta_i
    theta   = theta_0 + sum_i lambda_i S_i C_i / max(sum_i S_i, 1e-12)

n sources, d elements, density r, weight lambda_i. Every minimum, maximum and order statistic is over the whole model,
so that it makes no difference how a model is divided into tensors. With them known the rest is element-wise.

Four definitions of the authors differ in c and inter_i; tn_i = sign(tau_i) mm(A_i):

    main       c = 1e-4   tanh(tau_i sum_j tau_j)
    nlp        c = 1e-2   tanh(tau_i sum_j tau_j)
    vision     c = 1e-2   tanh(tau_i sum_j tn_j)
    vision_es  c = 1e-2   sum_j tanh(tn_i tn_j)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evomerge.errors import MergeError
from evomerge.merging.order_statistics import kth_smallest_magnitude
from evomerge.merging.rule_tensors import Piece, RuleTensors

CLIPPED_SHARE = {"main": 1e-4, "nlp": 1e-2, "vision": 1e-2, "vision_es": 1e-2}


class Bounds(NamedTuple):
    """The range over the whole model that values are clipped to and scaled by."""

    low: float
    high: float

    def clip(self, values: Tensor) -> Tensor:
        return values.clamp(self.low, self.high)

    def scale(self, clipped: Tensor) -> Tensor:
        """mm: the range becomes 0 to 1; all values of an empty range become 0."""
        span = self.high - self.low
        return (clipped - self.low) / span if span > 0 else clipped * 0


EMPTY = Bounds(0.0, 0.0)


def merge_pcb(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """theta = theta_0 + the balanced task vectors, PCB-Merging, arXiv 2410.02396; see the head of this file.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.

    Raises:
        MergeError: a task vector has values that are not finite. Clipping would hide them.
    """
    variant, weights = str(tensors.options["variant"]), tensors.per_source("weight")
    share, density = CLIPPED_SHARE[variant], tensors.shared("density")
    magnitudes = tensors.cached(("pcb magnitudes", share), lambda: magnitude_bounds(tensors, share))
    competition = tensors.cached(
        ("pcb competition", variant, density), lambda: competition_bounds(tensors, variant, magnitudes, density)
    )

    def kernel(piece: Piece) -> Tensor:
        vectors = piece.task_vectors()
        balanced = balanced_sum(vectors, weights, variant, magnitudes=magnitudes, competition=competition)
        return balanced.add_(piece.the_base)

    for name in tensors.names:
        yield name, tensors.merge(name, kernel)


def balanced_sum(
    vectors: Sequence[Tensor],
    weights: Sequence[float],
    variant: str,
    magnitudes: Sequence[Bounds],
    competition: Sequence[Bounds],
) -> Tensor:
    """sum_i lambda_i S_i C_i / max(sum_i S_i, 1e-12) for corresponding elements of all task vectors.

    Args:
        vectors: tau_i, all of one shape and dtype.
        magnitudes: the range of A_i.
        competition: the range of max(beta_i, b_i).
    """
    merged, divisor = torch.zeros_like(vectors[0]), torch.zeros_like(vectors[0])
    for source, score in enumerate(betas(vectors, variant, magnitudes)):
        score = competition[source].scale(competition[source].clip(score))
        divisor += score
        merged += score.mul_(_clipped(vectors[source], magnitudes[source])).mul_(weights[source])
    return merged.div_(divisor.clamp_(min=1e-12))


def betas(
    vectors: Sequence[Tensor], variant: str, magnitudes: Sequence[Bounds], sources: Iterable[int] | None = None
) -> Iterator[Tensor]:
    """beta_i = exp(n mm(A_i)^2) inter_i of all or some sources, up to a factor that mm() takes out again."""
    n = len(vectors)
    rivals = (
        vectors if variant in ("main", "nlp") else [_scaled(*each) for each in zip(vectors, magnitudes, strict=True)]
    )
    total = None if variant == "vision_es" else _sum(rivals)
    for source in range(n) if sources is None else sources:
        # exp(89) is more than float32 holds.
        within = (_scaled(vectors[source], magnitudes[source]).square_().mul_(n) - max(0, n - 64)).exp_()
        if total is None:
            yield within.mul_(_sum([(rivals[source] * rival).tanh_() for rival in rivals]))
        else:
            yield within.mul_((vectors[source] * total).tanh_())


def _scaled(vector: Tensor, bounds: Bounds) -> Tensor:
    """tn_i = sign(tau_i) mm(A_i)."""
    return bounds.scale(bounds.clip(vector.abs())).mul_(vector.sign())


def _clipped(vector: Tensor, bounds: Bounds) -> Tensor:
    """C_i = sign(tau_i) A_i."""
    return bounds.clip(vector.abs()).mul_(vector.sign())


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    return total


def magnitude_bounds(tensors: RuleTensors, share: float) -> tuple[Bounds, ...]:
    """The order statistics int(d c) and int(d (1 - c)) - 1 of |tau_i| over the whole model, for each source.

    Raises:
        MergeError: a task vector has values that are not finite.
    """
    scope = tensors.whole_model
    elements, dtype = tensors.elements(scope), tensors.dtype(scope)

    def magnitudes(source: int) -> Iterator[Tensor]:
        for name in scope:
            for piece in tensors.pieces(name, [source]):
                magnitude = piece.task_vectors()[0].abs_()
                if not bool(torch.isfinite(magnitude).all()):
                    raise MergeError(f"the base or a source has values that are not finite in tensor {name!r}")
                yield magnitude

    def at(source: int, index: int) -> float:
        return kth_smallest_magnitude(lambda: magnitudes(source), _rank(index, elements), dtype)

    low, high = int(elements * share), int(elements * (1 - share)) - 1
    sources = range(len(tensors.sources))
    return tuple(Bounds(at(source, low), at(source, high)) if elements else EMPTY for source in sources)


def competition_bounds(
    tensors: RuleTensors, variant: str, magnitudes: Sequence[Bounds], density: float
) -> tuple[Bounds, ...]:
    """b_i, the order statistic int(d (1 - r)) of beta_i over the whole model, and the largest beta_i, for each source.

    Args:
        magnitudes: from `magnitude_bounds`.
        density: r.
    """
    scope = tensors.whole_model
    elements, dtype = tensors.elements(scope), tensors.dtype(scope)

    def values(source: int) -> Iterator[Tensor]:
        for name in scope:
            for piece in tensors.pieces(name):
                yield from betas(piece.task_vectors(), variant, magnitudes, [source])

    def bounds(source: int) -> Bounds:
        rank = _rank(int(elements * (1 - density)), elements)
        return Bounds(*_kth_smallest_and_largest(lambda: values(source), rank, dtype))

    return tuple(bounds(source) if elements else EMPTY for source in range(len(tensors.sources)))


def _rank(index: int, elements: int) -> int:
    """A rank counted from 1 for an index counted from 0; what is outside of the vector becomes its first or last."""
    return min(max(index, 0), elements - 1) + 1


def _kth_smallest_and_largest(
    pieces: Callable[[], Iterator[Tensor]], k: int, dtype: torch.dtype
) -> tuple[float, float]:
    """The k-th smallest number, k from 1, and the largest."""
    negative, largest = 0, -math.inf
    for piece in pieces():
        negative += int((piece < 0).count_nonzero())
        largest = max(largest, float(piece.max()))
    if k > negative:
        return kth_smallest_magnitude(lambda: (piece[piece >= 0] for piece in pieces()), k - negative, dtype), largest
    # The k-th smallest of the negative numbers is the k-th largest of their magnitudes.
    return -kth_smallest_magnitude(lambda: (piece[piece < 0] for piece in pieces()), negative - k + 1, dtype), largest
