"""SCE: select elements by variance, calculate weights by energy, erase minority signs. FuseChat, arXiv 2408.07990."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from evomerge.tensors.order_statistics import kth_smallest_magnitude
from evomerge.tensors.rule_tensors import Piece, RuleTensors
from evomerge.tensors.sums import ordered_sum

LEAST_DIVISOR = 1e-6


def merge_sce(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """For every tensor, in mergekit's reading of FuseChat (arXiv 2408.07990):

        v_j = population variance of tau_ij over the sources                        (1)
        x_ij = tau_ij where v_j is among the int(select_topk m) largest, else 0     (2) select; m of the v_j are not 0
        c_i = sum_j x_ij^2 / sum_k sum_j x_kj^2, or 1/n where all are 0             (3) calculate
        e_ij = [x_ij has the sign of sum_k x_kj]                                    (4) erase
        theta_j = theta_0j + sum_i c_i e_ij x_ij / max(sum_i c_i e_ij, 1e-6)        (5)

    At least one element is selected, all that are tied with the last, and everything under `select_topk: 1`.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.
    """
    for name in tensors.names:
        yield name, _merge_tensor(tensors, name)


def variance(vectors: Sequence[Tensor]) -> Tensor:
    """The population variance over the vectors, by element: (1)."""
    mean = _sum(vectors) / len(vectors)
    return _sum([(vector - mean).square_() for vector in vectors]) / len(vectors)


def merge_selected(selected: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """(4) and (5), without the base. NaN is never erased."""
    total = _sum(selected)
    kept = [
        ((each * total) <= 0).logical_not_().to(each.dtype) * share
        for each, share in zip(selected, shares, strict=True)
    ]
    merged = _sum([weight * each for weight, each in zip(kept, selected, strict=True)])
    return merged / _sum(kept).clamp_(min=LEAST_DIVISOR)


def _merge_tensor(tensors: RuleTensors, name: str) -> Tensor:
    share = tensors.shared("select_topk")
    least, shares = tensors.cached(("sce", name, share), lambda: _measured(tensors, name, share))
    return tensors.merge(name, lambda piece: merge_selected(_selected(piece, least), shares).add_(piece.the_base))


def _measured(tensors: RuleTensors, name: str, share: float) -> tuple[float, list[float]]:
    """The least selected variance, and c_i."""
    least = _least_variance(tensors, name, share)
    energies = [0.0] * len(tensors.sources)
    for piece in tensors.pieces(name):
        for place, each in enumerate(_selected(piece, least)):
            energies[place] += ordered_sum([each.double().square_()])
    total = sum(energies)
    return least, [energy / total if total else 1 / len(energies) for energy in energies]


def _least_variance(tensors: RuleTensors, name: str, share: float) -> float:
    """The variance from which on elements are selected: (2)."""
    elements = tensors.like(name).numel()
    if share == 1 or elements == 0:
        return 0.0
    varied = sum(int(each.count_nonzero()) for each in _variances(tensors, name)())
    rank = elements - max(1, int(share * varied)) + 1
    return kth_smallest_magnitude(_variances(tensors, name), rank, tensors.dtype([name]))


def _variances(tensors: RuleTensors, name: str) -> Callable[[], Iterator[Tensor]]:
    return lambda: (variance(piece.task_vectors()) for piece in tensors.pieces(name))


def _selected(piece: Piece, least: float) -> list[Tensor]:
    vectors = piece.task_vectors()
    if least == 0:
        return vectors
    small = variance(vectors) < least
    return [torch.where(small, 0.0, vector) for vector in vectors]


def _sum(vectors: Sequence[Tensor]) -> Tensor:
    total = vectors[0].clone()
    for vector in vectors[1:]:
        total += vector
    return total
