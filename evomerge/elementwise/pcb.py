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
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple

import torch
from torch import Tensor

from evomerge.errors import MergeError
from evomerge.tensors.competition import competition_within
from evomerge.tensors.elementary import hyperbolic_tangent, tangent_up_to_one
from evomerge.tensors.order_statistics import expected_order_statistics
from evomerge.tensors.plans import Factors, Formula, Plan
from evomerge.tensors.rule_tensors import Piece, RuleTensors

SAMPLED = 61  # one of so many elements tells where order statistics are to be expected
CLIPPED_SHARE = {"main": 1e-4, "nlp": 1e-2, "vision": 1e-2, "vision_es": 1e-2}


class Bounds(NamedTuple):
    """The range over the whole model that values are clipped to, and the factor that takes it to 0 … 1.

    The factor of an empty range is 0.
    """

    low: float
    high: float
    factor: float

    def clip(self, values: Tensor) -> Tensor:
        return values.clamp(self.low, self.high)

    def scale(self, clipped: Tensor) -> Tensor:
        """mm: the range becomes 0 to 1; all values of an empty range become 0."""
        return (clipped - self.low).mul_(self.factor)


def _range(low: float, high: float, dtype: torch.dtype) -> Bounds:
    """The range from low to high. One whose length is no normal number of the dtype counts as empty."""
    span = high - low
    return Bounds(low, high, 1 / span if span >= torch.finfo(dtype).tiny else 0.0)


def merge_pcb(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """theta = theta_0 + the balanced task vectors, PCB-Merging, arXiv 2410.02396; see the head of this file.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.

    Raises:
        MergeError: a task vector has values that are not finite. Clipping would hide them.
    """
    variant, weights = str(tensors.options["variant"]), tensors.per_source("weight")
    magnitudes, competition = _measured(tensors, variant)

    def kernel(piece: Piece) -> Tensor:
        vectors = piece.task_vectors()
        balanced = balanced_sum(vectors, weights, variant, magnitudes=magnitudes, competition=competition)
        return balanced.add_(piece.the_base)

    for name in tensors.names:
        yield name, tensors.merge(name, kernel)


def plan_pcb(tensors: RuleTensors) -> Plan:
    """The formula of `merge_pcb`.

    Raises:
        MergeError: see `merge_pcb`.
    """
    variant, weights = str(tensors.options["variant"]), tensors.per_source("weight")
    bounds = zip(*_measured(tensors, variant), strict=True)
    factors = [
        Factors(weight, ranges=(*sizes, scores.low, scores.factor))
        for weight, (sizes, scores) in zip(weights, bounds, strict=True)
    ]
    return Plan(formula=Formula(kind="competition", variant=variant), factors=lambda name: factors)


def _measured(tensors: RuleTensors, variant: str) -> tuple[tuple[Bounds, ...], tuple[Bounds, ...]]:
    """The ranges of magnitudes and scores, measured once for all candidates with this variant and density."""
    share, density = CLIPPED_SHARE[variant], tensors.shared("density")
    magnitudes = tensors.cached(("pcb magnitudes", share), lambda: magnitude_bounds(tensors, share))
    competition = tensors.cached(
        ("pcb competition", variant, density), lambda: competition_bounds(tensors, variant, magnitudes, density)
    )
    return magnitudes, competition


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


def betas(vectors: Sequence[Tensor], variant: str, magnitudes: Sequence[Bounds]) -> Iterator[Tensor]:
    """beta_i = exp(n mm(A_i)^2) inter_i of each source, up to a factor that mm() takes out again."""
    n = len(vectors)
    for source, between in enumerate(_between(vectors, variant, magnitudes)):
        bounds = magnitudes[source]
        yield competition_within(bounds.scale(bounds.clip(vectors[source].abs())), n).mul_(between)


def _between(vectors: Sequence[Tensor], variant: str, magnitudes: Sequence[Bounds]) -> list[Tensor]:
    """inter_i of each source."""
    if variant in ("main", "nlp"):
        total = _sum(vectors)
        return [hyperbolic_tangent(vector * total) for vector in vectors]
    scaled = [_scaled(vector, bounds) for vector, bounds in zip(vectors, magnitudes, strict=True)]
    if variant == "vision":
        total = _sum(scaled)
        return [hyperbolic_tangent(vector * total) for vector in vectors]
    sums = [torch.zeros_like(vector) for vector in vectors]
    for i, j in combinations_with_replacement(range(len(scaled)), 2):  # each sum grows in source order
        rivalry = tangent_up_to_one(scaled[i] * scaled[j])
        sums[i] += rivalry
        if i != j:
            sums[j] += rivalry
    return sums


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
    elements = tensors.elements(tensors.whole_model)

    def magnitudes(stride: int = 1) -> Iterator[list[Tensor]]:
        for name in tensors.whole_model:
            for piece in tensors.pieces(name):
                vectors = [vector[::stride].abs() for vector in piece.task_vectors()]
                if not all(math.isfinite(float(vector.amax())) for vector in vectors):  # NaN is the largest
                    raise MergeError(f"the base or a source has values that are not finite in tensor {name!r}")
                yield vectors

    return _bounds(magnitudes, (int(elements * share), int(elements * (1 - share)) - 1), tensors)


def competition_bounds(
    tensors: RuleTensors, variant: str, magnitudes: Sequence[Bounds], density: float
) -> tuple[Bounds, ...]:
    """b_i, the order statistic int(d (1 - r)) of beta_i over the whole model, and the largest beta_i, for each source.

    Args:
        magnitudes: from `magnitude_bounds`.
        density: r.
    """
    elements = tensors.elements(tensors.whole_model)

    def scores(stride: int = 1) -> Iterator[list[Tensor]]:
        for name in tensors.whole_model:
            for piece in tensors.pieces(name):
                vectors = [vector[::stride].contiguous() for vector in piece.task_vectors()]
                yield list(betas(vectors, variant, magnitudes))

    return _bounds(scores, (int(elements * (1 - density)), elements - 1), tensors)


def _bounds(
    pieces: Callable[..., Iterator[list[Tensor]]], indices: tuple[int, int], tensors: RuleTensors
) -> tuple[Bounds, ...]:
    """Two order statistics of a vector of each source. An index outside of the vector means its first or last.

    Args:
        pieces: of the vectors; called with a stride, of every so many elements alone.
    """
    elements, dtype = tensors.elements(tensors.whole_model), tensors.dtype(tensors.whole_model)
    if elements == 0:
        return (_range(0.0, 0.0, dtype),) * len(tensors.sources)
    ranks = [min(max(index, 0), elements - 1) + 1 for index in indices]
    found = expected_order_statistics(pieces, ranks, dtype, elements=elements, sample=pieces(SAMPLED))
    return tuple(_range(low, high, dtype) for low, high in found)
