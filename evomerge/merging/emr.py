"""EMR-Merging: one elected task vector for all tasks, and for each task a mask and a rescaler. arXiv 2405.17461.

The result is not one model but one per task. With float64 inside, a single source comes back as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evomerge.errors import MergeError, unknown_name
from evomerge.tensors.named_tensors import common_names
from evomerge.tensors.rule_tensors import Piece, RuleTensors
from evomerge.tensors.sums import ordered_sum

__all__ = ["elect", "mask", "rescaler"]

RESCALERS = ("flat_sum", "tensor_mean")


def merge_emr(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """theta = theta_0 + s_i M_i uni, the reconstruction for task i; see `elect`, `mask` and `rescaler`.

    The option `task` is i, counted from 0. The rescaler s_i is one number for the whole model.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.

    Raises:
        MergeError: the base or a source has values that are not finite.
    """
    task = int(tensors.options["task"])
    if len(tensors.sources) == 1:  # the source itself, where base + (source - base) would be rounded
        yield from ((name, tensors.merge(name, lambda piece: piece.sources[0])) for name in tensors.names)
        return
    factor = rescaler_of(tensors, task)

    def kernel(piece: Piece) -> Tensor:
        vectors = _task_vectors(piece)
        elected = elected_vector(vectors)
        return reconstruction(piece.the_base, elected, agreement(vectors[task], elected), factor)

    for name in tensors.names:
        yield name, tensors.merge(name, kernel)


def elect(task_vectors: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The unified vector: per element the elected sign, times the largest magnitude among the values of that sign.

        g = +1 where mean_i tau_i > 0, else -1        uni = g * max_i(|tau_i| [tau_i g > 0])

    Args:
        task_vectors: tau_i, source minus base, of each source as `{tensor name: tensor}`.

    Returns:
        New tensors with the names and dtypes of the first task vector.

    Raises:
        InvalidInput: no task vector, or different names or shapes.
    """
    common_names(task_vectors)
    return {
        name: elected_vector([vector[name].detach().double() for vector in task_vectors]).to(tensor.dtype)
        for name, tensor in task_vectors[0].items()
    }


def mask(task_vector: Mapping[str, Tensor], elected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """M_i = [tau_i g > 0]: the elements of a task vector that have the elected sign, as boolean tensors.

    Args:
        elected: from `elect`.

    Raises:
        InvalidInput: different names or shapes.
    """
    common_names([task_vector, elected])
    return {name: agreement(vector.detach(), elected[name].detach()) for name, vector in task_vector.items()}


def rescaler(task_vector: Mapping[str, Tensor], elected: Mapping[str, Tensor], rule: str = "flat_sum") -> float:
    """s_i = sum |tau_i| / sum |M_i uni|: restores the mean magnitude of a task vector. 0 where nothing agrees.

    Args:
        elected: from `elect`.
        rule: `flat_sum`, sums over all elements of the model; or `tensor_mean`, sums over tensors of their means, so
            that a bias counts as much as a matrix.

    Raises:
        InvalidInput: an unknown rule, or different names or shapes.
    """
    common_names([task_vector, elected])
    if rule not in RESCALERS:
        raise unknown_name("rescaler", str(rule), RESCALERS)
    pairs = ((vector.detach().double(), elected[name].detach().double()) for name, vector in task_vector.items())
    return _rescaler([_Magnitudes.of([pair]) for pair in pairs], rule)


def elected_vector(vectors: Sequence[Tensor]) -> Tensor:
    """`elect` for one tensor of each source, all of one shape and dtype; in new memory."""
    total = vectors[0].clone()
    for vector in vectors[1:]:
        total += vector
    sign = (total > 0).to(total.dtype).mul_(2).sub_(1)
    largest = torch.zeros_like(total)
    for vector in vectors:
        torch.maximum(largest, vector * sign, out=largest)
    return largest.mul_(sign).add_(0.0)  # a zero of either sign becomes +0


def agreement(vector: Tensor, elected: Tensor) -> Tensor:
    """`mask` for one tensor. Signs are compared: the product of two small values would be 0."""
    return (vector.sign() == elected.sign()) & (vector != 0)


def reconstruction(base: Tensor, elected: Tensor, agrees: Tensor, factor: float) -> Tensor:
    """theta = theta_0 + s_i M_i uni, for one tensor, in float64 and in the memory of `elected`.

    Args:
        elected: uni, float64; it is overwritten.
        agrees: M_i.
        factor: s_i.
    """
    return elected.mul_(agrees).mul_(factor).add_(base)


def rescaler_of(tensors: RuleTensors, task: int) -> float:
    """`rescaler` of one source over the whole model, by the rule's option; 1 for a single source, which is kept."""
    if len(tensors.sources) == 1:
        return 1.0
    magnitudes = tensors.cached(("emr magnitudes", task), lambda: _magnitudes(tensors, task))
    return _rescaler(magnitudes, str(tensors.options["rescaler"]))


def elected_weights(tensors: RuleTensors, name: str) -> Tensor:
    """theta_0 + uni of one tensor: element by element the weight of the source that was elected, or of the base.

    Unlike uni itself it is exact in the dtype of the models: nothing was subtracted. With a single source it is that
    source.
    """

    def kernel(piece: Piece) -> Tensor:
        if len(piece.sources) == 1:
            return piece.sources[0]
        vectors = _task_vectors(piece)
        elected = elected_vector(vectors)
        weights = piece.the_base.clone()
        for source, vector in zip(piece.sources, vectors, strict=True):
            weights = torch.where((vector == elected) & (elected != 0), source, weights)
        return weights

    models = (*tensors.sources, *([] if tensors.base is None else [tensors.base]))
    dtypes = {model[name].dtype for model in models}
    merged = tensors.merge(name, kernel)
    return merged.to(dtypes.pop()) if len(dtypes) == 1 else merged


def mask_of(tensors: RuleTensors, name: str, task: int) -> Tensor:
    """`mask` of one tensor of one source, boolean. With a single source everything is kept."""
    like = tensors.like(name)
    if len(tensors.sources) == 1:
        return torch.ones(like.shape, dtype=torch.bool)
    pieces = []
    for piece in tensors.pieces(name):
        vectors = _task_vectors(piece)
        pieces.append(agreement(vectors[task], elected_vector(vectors)))
    return torch.cat(pieces).reshape(like.shape) if pieces else torch.zeros(like.shape, dtype=torch.bool)


class _Magnitudes(NamedTuple):
    """Sums over one tensor of one source."""

    elements: int
    own: float  # sum |tau_i|
    reconstructed: float  # sum |M_i uni|

    @classmethod
    def of(cls, pairs: Iterable[tuple[Tensor, Tensor]]) -> _Magnitudes:
        """Of pieces of a task vector and of the elected vector, in float64."""
        elements, own, reconstructed = 0, 0.0, 0.0
        for vector, elected in pairs:
            elements += vector.numel()
            own += ordered_sum([vector.abs()])
            reconstructed += ordered_sum([elected.abs().mul_(agreement(vector, elected))])
        return cls(elements, own, reconstructed)


def _magnitudes(tensors: RuleTensors, task: int) -> list[_Magnitudes]:
    """Of every tensor of the whole model.

    Raises:
        MergeError: a tensor has values that are not finite. They would spoil the rescaler, and so all tensors.
    """

    def pairs(name: str) -> Iterator[tuple[Tensor, Tensor]]:
        for piece in tensors.pieces(name):
            vectors = _task_vectors(piece)
            yield vectors[task], elected_vector(vectors)

    found = {name: _Magnitudes.of(pairs(name)) for name in tensors.whole_model}
    for name, each in found.items():
        if not math.isfinite(each.own + each.reconstructed):
            raise MergeError(f"the base or a source has values that are not finite in tensor {name!r}")
    return list(found.values())


def _rescaler(tensors: Iterable[_Magnitudes], rule: str) -> float:
    own, reconstructed = 0.0, 0.0
    for each in tensors:
        divisor = 1 if rule == "flat_sum" else max(1, each.elements)
        own += each.own / divisor
        reconstructed += each.reconstructed / divisor
    return own / reconstructed if reconstructed != 0 else 0.0


def _task_vectors(piece: Piece) -> list[Tensor]:
    base = piece.the_base.double()
    return [source.double() - base for source in piece.sources]
