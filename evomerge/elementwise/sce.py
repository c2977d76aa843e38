"""SCE: select elements by variance, calculate weights by energy, erase minority signs. FuseChat, arXiv 2408.07990."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.tensors.order_statistics import end_of_equal, kth_smallest_magnitude
from evomerge.tensors.rule_tensors import Piece, RuleTensors
from evomerge.tensors.sums import ordered_sum

LEAST_DIVISOR = 1e-6


def merge_sce(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """For every tensor, in mergekit's reading of FuseChat (arXiv 2408.07990):

        v_j = population variance of tau_ij over the sources                        (1)
        x_ij = tau_ij where v_j is among the int(select_topk m) largest, else 0     (2) select; m of the v_j are not 0
        c_i = sum_j x_ij^2 / sum_k sum_j x_kj^2, or 1/n where all are 0             (3) calculate
        e_ij = [x_ij has the sign of sum_k x_kj]                                    (4) erase; `zero_sum`
        theta_j = theta_0j + sum_i c_i e_ij x_ij / max(sum_i c_i e_ij, 1e-6)        (5)

    At least one element is selected, all that are tied with the last, and everything under `select_topk: 1`. Under
    `kept_rule: exact` of tied ones those of lowest index are, as many as the share says, and nothing at a share of 0.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.
    """
    for name in tensors.names:
        yield name, _merge_tensor(tensors, name)


def variance(vectors: Sequence[Tensor]) -> Tensor:
    """The population variance over the vectors, by element: (1)."""
    mean = _sum(vectors) / len(vectors)
    return _sum([(vector - mean).square_() for vector in vectors]) / len(vectors)


def merge_selected(selected: Sequence[Tensor], shares: Sequence[float], *, zero_is_positive: bool = False) -> Tensor:
    """(4) and (5), without the base. NaN is never erased."""
    total = _sum(selected)
    if zero_is_positive:
        total = total.sign().masked_fill_(total == 0, 1.0)
    kept = [
        ((each * total) <= 0).logical_not_().to(each.dtype) * share
        for each, share in zip(selected, shares, strict=True)
    ]
    merged = _sum([weight * each for weight, each in zip(kept, selected, strict=True)])
    return merged / _sum(kept).clamp_(min=LEAST_DIVISOR)


@dataclass(frozen=True)
class Selection:
    """The elements of a tensor that are selected.

    Attributes:
        least: the least variance.
        end: of those with exactly this variance the ones below this index; None: all.
    """

    least: float
    end: int | None = None

    def __call__(self, piece: Piece) -> list[Tensor]:
        """The task vectors of a piece, with 0 where nothing is selected."""
        vectors = piece.task_vectors()
        if self.least == 0:
            return vectors
        varied = variance(vectors)
        small = varied < self.least
        if self.end is not None:
            index = torch.arange(piece.start, piece.stop, device=small.device)
            small |= (varied == self.least) & (index >= self.end)
        return [torch.where(small, 0.0, vector) for vector in vectors]


def _merge_tensor(tensors: RuleTensors, name: str) -> Tensor:
    # Recipes from before there were these options do not name them.
    exact, plus = tensors.options.get("kept_rule") == "exact", tensors.options.get("zero_sum") == "plus"
    share = tensors.shared("select_topk")
    key = "sce", name, share, exact
    selection, shares = tensors.cached(key, lambda: _measured(tensors, name, share, exact=exact))

    def merged(piece: Piece) -> Tensor:
        return merge_selected(selection(piece), shares, zero_is_positive=plus).add_(piece.the_base)

    return tensors.merge(name, merged)


def _measured(tensors: RuleTensors, name: str, share: float, *, exact: bool) -> tuple[Selection, list[float]]:
    """The selected elements, and c_i."""
    selection = _selection(tensors, name, share, exact=exact)
    energies = [0.0] * len(tensors.sources)
    for piece in tensors.pieces(name):
        for place, each in enumerate(selection(piece)):
            energies[place] += ordered_sum([each.double().square_()])
    total = sum(energies)
    return selection, [energy / total if total else 1 / len(energies) for energy in energies]


def _selection(tensors: RuleTensors, name: str, share: float, *, exact: bool) -> Selection:
    """The selected elements: (2)."""
    elements = tensors.like(name).numel()
    if share == 1 or elements == 0:
        return Selection(0.0)
    if exact and share == 0:
        return Selection(math.inf)
    variances = _variances(tensors, name)
    varied = sum(int(each.count_nonzero()) for each in variances())
    kept = max(1, int(share * varied))
    least = kth_smallest_magnitude(variances, elements - kept + 1, tensors.dtype([name]))
    if not exact or least == 0:
        return Selection(least)
    larger = sum(int((each > least).count_nonzero()) for each in variances())
    return Selection(least, end_of_equal(variances(), least, kept - larger))


def _variances(tensors: RuleTensors, name: str) -> Callable[[], Iterator[Tensor]]:
    return lambda: (variance(piece.task_vectors()) for piece in tensors.pieces(name))


def _sum(vectors: Sequence[Tensor]) -> Tensor:
    total = vectors[0].clone()
    for vector in vectors[1:]:
        total += vector
    return total
