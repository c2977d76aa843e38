"""Merges of the linear weights' task vectors as matrices: TSV-M, Iso-C and the closed form of WUDI.

Each gives one merged task vector M per tensor, which no parameter of a search changes: it is made once per worker, and
a candidate is theta_0 + lambda M. Linear weights are the two-dimensional tensors that are neither embeddings nor heads;
of every other tensor M is the mean of the task vectors. Matrices are decomposed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from evomerge.errors import InvalidInput, MergeError
from evomerge.merging.opcm import decompose, is_linear
from evomerge.tensors.one_thread import one_thread
from evomerge.tensors.rule_tensors import RuleTensors, Tensors
from evomerge.tensors.task_vectors import TaskVectors
from evomerge.tensors.tied_names import canonical_names

Combine = Callable[[Sequence[Tensor]], Tensor]
"""Task vectors [out, in] of one weight in float64 -> M, likewise."""


def merge_tsv_m(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """Task singular vectors (TSV-M), arXiv 2412.00081: see `task_singular_vectors`.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.

    Raises:
        MergeError: a task vector is not finite.
    """
    return _merge(tensors, "tsv_m", task_singular_vectors)


def merge_iso_c(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """Isotropic merging in the common subspace (Iso-C), arXiv 2502.04959: see `isotropic_sum`.

    Yields, Raises:
        As `merge_tsv_m`.
    """
    return _merge(tensors, "iso_c", isotropic_sum)


def merge_wudi(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """WUDI, arXiv 2503.08099, where its gradient is 0: see `least_interference`.

    Yields, Raises:
        As `merge_tsv_m`.
    """
    return _merge(tensors, "wudi", least_interference)


def task_singular_vectors(vectors: Sequence[Tensor]) -> Tensor:
    """M = U S V' of the leading singular triples of all task vectors, made orthogonal.

        tau_i = U_i S_i V_i', of which the k = min(out, in) // n leading triples are kept                 (1)
        U = polar factor of [U_1 .. U_n], V likewise, S = diag(S_1 .. S_n)                                (2)

    The polar factor of P D Q' is P Q', over the directions that are there: what several task vectors share counts once.
    A matrix with fewer rows or columns than there are task vectors has no triple for each; M is their mean.
    """
    kept = min(vectors[0].shape) // len(vectors)
    if kept == 0:
        return _mean(vectors)
    found = [decompose(vector) for vector in vectors]
    left = _polar(torch.cat([each.left[:, :kept] for each in found], dim=1))
    right = _polar(torch.cat([each.right[:, :kept] for each in found], dim=1))
    values = torch.cat([each.values[:kept] for each in found])
    with one_thread():
        return (left * values) @ right.mT


def isotropic_sum(vectors: Sequence[Tensor]) -> Tensor:
    """M = mean(S) U V' of sum_i tau_i = U S V': the sum with all singular values equal.

    Directions that the sum does not have are left out, where the authors' code takes arbitrary ones.
    """
    found = decompose(_sum(vectors))
    there = _there(found.values, vectors[0])
    with one_thread():
        return found.left[:, there] @ found.right[:, there].mT * found.values.mean()


def least_interference(vectors: Sequence[Tensor]) -> Tensor:
    """M = (sum_i tau_i G_i) (sum_i G_i)^+ with G_i = tau_i' tau_i / |tau_i|^2.

    It minimises sum_i |(M - tau_i) tau_i'|^2 / |tau_i|^2, which the authors descend from the sum of the task vectors
    for some hundred steps. It is RegMean with the Gram of a task vector in the place of that of inputs, which are the
    columns: weights are taken as stored [out, in].
    """
    inputs = vectors[0].shape[1]
    total, weighted = vectors[0].new_zeros(inputs, inputs), torch.zeros_like(vectors[0])
    with one_thread():
        for vector in vectors:
            length = float(vector.norm())
            if length > 0:
                unit = vector / length
                gram = unit.mT @ unit
                total += gram
                weighted += vector @ gram
    found = decompose(total)
    there = _there(found.values, total)
    with one_thread():
        return weighted @ (found.right[:, there] / found.values[there]) @ found.left[:, there].mT


def _merge(tensors: RuleTensors, method: str, combine: Combine) -> Iterator[tuple[str, Tensor]]:
    factor = tensors.shared("lambda")
    linear = tensors.cached((method, "linear"), lambda: _linear(tensors))
    for name in tensors.names:
        made = partial(_merged_vector, tensors, name, combine if name in linear else None)
        yield name, _on_base(tensors, name, tensors.kept((method, name), made), factor)


def _linear(tensors: RuleTensors) -> frozenset[str]:
    """Names of the linear weights: by none of its names in the base is one an embedding or a head."""
    base = _base(tensors)
    canonical = canonical_names([base])
    other = {canonical[name] for name in base if not is_linear(name, heads=False)}
    names = {*tensors.whole_model, *tensors.names}
    return frozenset(
        name for name in names if canonical[name] not in other and base[name].dim() == 2 and base[name].numel()
    )


def _merged_vector(tensors: RuleTensors, name: str, combine: Combine | None) -> Tensor:
    """M of one tensor, flattened, in the dtype of the arithmetic; without a `combine` the mean."""
    vectors = TaskVectors(tensors)
    if combine is None:
        pieces = [_mean(vectors.of(name, piece)) for piece in tensors.pieces(name)]
        return torch.cat(pieces) if pieces else torch.empty(0, device=tensors.like(name).device)
    shape = tensors.like(name).shape
    matrices = [
        torch.cat([piece.double() for piece in vectors.pieces(source, name)]).view(shape)
        for source in range(len(tensors.sources))
    ]
    if not all(bool(torch.isfinite(matrix).all()) for matrix in matrices):
        raise MergeError(f"the task vector has values that are not finite in tensor {name!r}")
    return combine(matrices).to(tensors.dtype([name])).reshape(-1).contiguous()


def _on_base(tensors: RuleTensors, name: str, vector: Tensor, factor: float) -> Tensor:
    """theta_0 + lambda M, rounded as the rule asks for."""
    like, dtype = tensors.like(name), tensors.dtype([name])
    merged = torch.empty(like.shape, dtype=tensors.rounded or dtype, device=like.device)
    flat = merged.view(-1)
    for piece in tensors.pieces(name, []):
        stop = piece.start + piece.the_base.numel()
        flat[piece.start : stop] = (vector[piece.start : stop] * factor).add_(piece.the_base)
    return merged


def _base(tensors: RuleTensors) -> Tensors:
    if tensors.base is None:
        raise InvalidInput("this method works on task vectors (source minus base); give the base model")
    return tensors.base


def _polar(matrix: Tensor) -> Tensor:
    """P Q' of the reduced decomposition P D Q', over the directions whose d is not 0."""
    found = decompose(matrix)
    there = _there(found.values, matrix)
    with one_thread():
        return found.left[:, there] @ found.right[:, there].mT


def _there(values: Tensor, matrix: Tensor) -> Tensor:
    """A mask of the singular values that are more than rounding; none of a matrix that is 0."""
    return values > values[:1] * (max(matrix.shape) * torch.finfo(matrix.dtype).eps)


def _sum(vectors: Sequence[Tensor]) -> Tensor:
    total = vectors[0].clone()
    for vector in vectors[1:]:
        total += vector
    return total


def _mean(vectors: Sequence[Tensor]) -> Tensor:
    return _sum(vectors) / len(vectors)
