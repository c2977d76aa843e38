"""Merges of the linear weights' task vectors as matrices: TSV-M, Iso-C and the closed form of WUDI.

Each gives one merged task vector M per tensor, which no parameter of a search changes: it is made once per worker, and
a candidate is theta_0 + lambda M. Linear weights are the two-dimensional tensors that are neither embeddings nor heads;
of every other tensor M is the mean of the task vectors. Matrices are decomposed in float64.

A task vector is a difference of rounded weights. One of low rank, such as that of an adapter, has more singular values
above 0 than directions, and those that rounding made are arbitrary. These methods make lengths equal, vectors
orthogonal or divide by squares, which would give rounding full weight, so they leave out what rounding alone explains,
in the dtype that the weights are stored in (`_rounding`); the authors' code does not. An adapter that was merged into
weights of few bits has lost what is less than their rounding; one given as an adapter is exact.

Among the directions of full rank those below the rounding of stored weights are the task's in part. Without them the
merge is further from that of exact weights than with them, so that none is left out there, as by the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from evomerge.errors import InvalidInput, MergeError
from evomerge.merging.opcm import Decomposition, decompose, is_linear
from evomerge.tensors.computed_tensors import dtype_of
from evomerge.tensors.one_thread import one_thread
from evomerge.tensors.rule_tensors import RuleTensors, Tensors
from evomerge.tensors.task_vectors import TaskVectors
from evomerge.tensors.tied_names import canonical_names

Combine = Callable[[Sequence[Tensor], Sequence[float]], Tensor]
"""Task vectors [out, in] of one weight in float64, and the spectral norm of the rounding in each -> M in float64."""

# However large the rounding of one source is: directions of all others at a larger angle are not taken for one.
_LARGEST_ANGLE = 0.1

# Share of the singular values that rounding explains, from which on the task vector is taken for one of low rank. Of a
# square matrix of independent entries that are twice their rounding it is about 0.6, of all others it is less.
_LOW_RANK = 2 / 3


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


def task_singular_vectors(vectors: Sequence[Tensor], rounding: Sequence[float] = ()) -> Tensor:
    """M = U S V' of the leading singular triples of all task vectors, made orthogonal.

        tau_i = U_i S_i V_i', of which at most the k = min(out, in) // n leading triples are kept         (1)
        U = polar factor of [U_1 .. U_n], V likewise, S = diag(S_1 .. S_n)                                (2)

    Only triples that a task vector has are kept: vectors of a singular value 0 are arbitrary, and though they have no
    weight in S, the polar factor would turn the others away from them. The polar factor of P D Q' is P Q', over the
    directions that are there: what several task vectors share counts once. A matrix with fewer rows or columns than
    there are task vectors has no triple for each; M is their mean.

    Args:
        rounding: spectral norm of the rounding in each vector; none of exact ones.
    """
    kept = min(vectors[0].shape) // len(vectors)
    if kept == 0:
        return _mean(vectors)
    lengths = rounding or [0.0] * len(vectors)
    found = [_leading(vector, kept, length) for vector, length in zip(vectors, lengths, strict=True)]
    angles = [length / float(each.values[-1]) for each, length in zip(found, lengths, strict=True) if len(each.values)]
    angle = min(max(angles, default=0.0), _LARGEST_ANGLE)
    left = _polar(torch.cat([each.left for each in found], dim=1), angle)
    right = _polar(torch.cat([each.right for each in found], dim=1), angle)
    values = torch.cat([each.values for each in found])
    with one_thread():
        return (left * values) @ right.mT


def isotropic_sum(vectors: Sequence[Tensor], rounding: Sequence[float] = ()) -> Tensor:
    """M = mean(S) U V' of sum_i tau_i = U S V': the sum with all singular values equal.

    Directions that the sum does not have are left out, where the authors' code takes arbitrary ones.

    Args:
        rounding: as in `task_singular_vectors`.
    """
    found = decompose(_sum(vectors))
    there = _there(found.values, vectors[0], math.hypot(*rounding))
    with one_thread():
        return found.left[:, there] @ found.right[:, there].mT * (found.values[there].sum() / len(there))


def least_interference(vectors: Sequence[Tensor], rounding: Sequence[float] = ()) -> Tensor:
    """M = (sum_i tau_i G_i) (sum_i G_i)^+ with G_i = tau_i' tau_i / |tau_i|^2.

    It minimises sum_i |(M - tau_i) tau_i'|^2 / |tau_i|^2, which the authors descend from the sum of the task vectors
    for some hundred steps. It is RegMean with the Gram of a task vector in the place of that of inputs, which are the
    columns: weights are taken as stored [out, in]. The pseudo-inverse leaves out directions of inputs in which all
    task vectors are rounding: divided by their squares, M would be large there.

    Args:
        rounding: as in `task_singular_vectors`.
    """
    inputs, square = vectors[0].shape[1], 0.0
    total, weighted = vectors[0].new_zeros(inputs, inputs), torch.zeros_like(vectors[0])
    with one_thread():
        for vector, error in zip(vectors, rounding or [0.0] * len(vectors), strict=True):
            length = float(vector.norm())
            if length > 0:
                unit = vector / length
                gram = unit.mT @ unit
                total += gram
                weighted += vector @ gram
                square += (error / length) ** 2
    found = decompose(total)
    there = _there(found.values, total, min(square, _LARGEST_ANGLE**2))
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
    rounding = [_rounding(tensors, source, name, matrix) for source, matrix in enumerate(matrices)]
    return combine(matrices, rounding).to(tensors.dtype([name])).reshape(-1).contiguous()


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


def _rounding(tensors: RuleTensors, source: int, name: str, vector: Tensor) -> float:
    """A bound of the spectral norm of the rounding in the task vector [out, in] of a source.

    The weights theta_0 + tau were rounded before theta_0 was subtracted: by the arithmetic, by eps / 2 of their size at
    most, or when they were stored, where that is in fewer bits.
    """
    weights = vector + tensors.like(name).detach().double()
    stored, arithmetic = dtype_of(tensors.sources[source], name), torch.finfo(tensors.dtype([name]))
    bound = _spectral_norm(weights) * arithmetic.eps
    if torch.finfo(stored).eps <= arithmetic.eps:
        return bound
    return max(bound, _rounding_when_stored(vector, weights, torch.finfo(stored)))


def _rounding_when_stored(vector: Tensor, weights: Tensor, stored: torch.finfo) -> float:
    """The same of weights that were rounded to a narrow dtype; 0 where the task vector is not of low rank.

    Errors are uniform between two halves of the spacing of the numbers. Weights that are the base's are not counted, as
    of a fine-tuning that changed few of them rounding would explain everything.
    """
    exponents = torch.frexp(weights.abs().clamp(min=stored.tiny)).exponent
    deviations = torch.exp2(exponents.double() - 1) * (stored.eps / math.sqrt(12))
    deviations[vector == 0] = 0.0
    bound = _spectral_norm(deviations)
    wide = vector if vector.shape[0] <= vector.shape[1] else vector.mT
    with one_thread():
        squares = torch.linalg.eigvalsh(wide @ wide.mT)
    return bound if int((squares <= bound**2).sum()) >= _LOW_RANK * len(squares) else 0.0


def _spectral_norm(deviations: Tensor) -> float:
    """That of a matrix with independent entries of mean 0 and these standard deviations, about or at most.

    It is the largest length of deviations in a row plus that in a column (Bandeira and van Handel, arXiv 1408.6185).
    """
    with one_thread():
        rows, columns = (float(torch.linalg.norm(deviations, dim=dim).max()) for dim in (1, 0))
    return rows + columns


def _leading(vector: Tensor, most: int, rounding: float) -> Decomposition:
    """The leading singular triples that are there, and no more than so many."""
    found = decompose(vector)
    count = min(most, int(_there(found.values, vector, rounding).sum()))
    return Decomposition(found.left[:, :count], found.values[:count], found.right[:, :count])


def _polar(matrix: Tensor, rounding: float) -> Tensor:
    """P Q' of the reduced decomposition P D Q', over the directions whose d is more than rounding."""
    found = decompose(matrix)
    there = _there(found.values, matrix, rounding)
    with one_thread():
        return found.left[:, there] @ found.right[:, there].mT


def _there(values: Tensor, matrix: Tensor, rounding: float = 0.0) -> Tensor:
    """A mask of the singular values that are more than rounding, in the matrix or by its decomposition."""
    decomposed = values[:1] * (max(matrix.shape) * torch.finfo(matrix.dtype).eps)
    return (values > decomposed) & (values > rounding)


def _sum(vectors: Sequence[Tensor]) -> Tensor:
    total = vectors[0].clone()
    for vector in vectors[1:]:
        total += vector
    return total


def _mean(vectors: Sequence[Tensor]) -> Tensor:
    return _sum(vectors) / len(vectors)
