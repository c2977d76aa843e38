"""A weighted sum of models with a weight per input column: what DAM trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.errors import InvalidInput
from evomerge.tensors.rule_tensors import CPU_PIECE, DEVICE_PIECE, RuleTensors


@dataclass(frozen=True)
class NonLinearity:
    """The function phi of a raw coefficient c, which gives the factor of a weight.

    Attributes:
        value: phi(c).
        slope: phi'(c).
        inverse: a raw coefficient for a factor, or None where phi never gives that factor.
    """

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    inverse: Callable[[float], float | None]


NONLINEARITIES: Mapping[str, NonLinearity] = {
    "identity": NonLinearity(lambda c: c, torch.ones_like, lambda factor: factor),
    "tanh": NonLinearity(
        torch.tanh,
        lambda c: 1 - torch.tanh(c).square(),
        lambda factor: math.atanh(factor) if -1 < factor < 1 else None,
    ),
    "sigmoid": NonLinearity(
        torch.sigmoid,
        lambda c: torch.sigmoid(c) * torch.sigmoid(-c),
        lambda factor: math.log(factor / (1 - factor)) if 0 < factor < 1 else None,
    ),
    "relu": NonLinearity(
        torch.relu, lambda c: (c > 0).to(c.dtype), lambda factor: factor if factor >= 0 else None
    ),
}  # fmt: skip


def merge_column_linear(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """theta = sum_i phi(c_i) * theta_i, with c_i broadcast to the tensor (DAM, arXiv 2410.08371).

    Parameter `coefficients`: for each source, in source order, {tensor name: c_i}. A coefficient is a floating-point
    tensor of any shape that broadcasts to its weight: [in] scales the columns of an [out, in] weight, [in, 1] the rows
    of a weight that is stored [in, out], [] the whole tensor. The operations are those of `linear`, so that constant
    coefficients give the bits of `linear` without the division by the sum.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.

    Raises:
        InvalidInput: a tensor has no coefficient, or one that does not broadcast or is not finite.
    """
    for name in tensors.names:
        like = tensors.like(name)
        merged = torch.empty(like.shape, dtype=tensors.dtype([name]), device=like.device)
        _write(tensors, name, merged)
        yield name, merged
        del merged  # taken: gone before the next is made


def write_column_linear(tensors: RuleTensors, targets: Mapping[str, Tensor]) -> None:
    """The same into tensors of any float dtype that are there already: the very bits that a cast of the merge gives.

    No temporary has the size of a tensor, which matters where a merge is written at every step.
    """
    for name in tensors.names:
        _write(tensors, name, targets[name])


def apply(phi: str, coefficients: Tensor) -> Tensor:
    """phi(c), computed in float64 and rounded to the dtype of c.

    In float32 the vectorised and the scalar tanh of one library differ in the last bit, and the number of threads
    decides which elements get which.
    """
    return NONLINEARITIES[phi].value(coefficients.double()).to(coefficients.dtype)


def row_blocks(shape: tuple[int, ...], device: torch.device) -> Iterator[slice]:
    """Slices along the first dimension, each of bounded size."""
    width = math.prod(shape[1:])
    rows = max(1, (CPU_PIECE if device.type == "cpu" else DEVICE_PIECE) // max(1, width))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))


def source_factors(tensors: RuleTensors, name: str, shape: torch.Size) -> list[Tensor]:
    """phi(c_i) of each source, in the dtype of the arithmetic; each broadcasts to the shape, which is the tensor's.

    Raises:
        InvalidInput: see `merge_column_linear`.
    """
    phi = str(tensors.options["phi"])
    return [apply(phi, each).to(tensors.dtype([name])) for each in column_coefficients(tensors, name, shape)]


def _write(tensors: RuleTensors, name: str, target: Tensor) -> None:
    device, dtype = target.device, tensors.dtype([name])
    shape = tuple(target.shape) or (1,)
    weights = [source[name].detach().reshape(shape) for source in tensors.sources]
    # Views with stride 0: no coefficient is ever written out to the size of its weight.
    spread = [factor.to(device).expand(shape) for factor in source_factors(tensors, name, target.shape)]
    rows = target.detach().view(shape)
    for block in row_blocks(shape, device):
        place = rows[block]
        total = place if place.dtype == dtype else torch.empty(place.shape, dtype=dtype, device=device)
        torch.mul(weights[0][block].to(device, dtype), spread[0][block], out=total)
        for weight, factor in zip(weights[1:], spread[1:], strict=True):
            total += weight[block].to(device, dtype) * factor[block]
        if total is not place:
            place.copy_(total)


def column_coefficients(tensors: RuleTensors, name: str, shape: torch.Size) -> list[Tensor]:
    """The coefficients of a tensor, one for each source, each of a shape that broadcasts to the tensor's.

    Raises:
        InvalidInput: one is missing, of another kind or shape, or not finite.
    """
    given = tensors.per_source_tensors("coefficients")
    return [_coefficient(each, name, shape, source=index) for index, each in enumerate(given)]


def _coefficient(coefficients: Mapping[str, Tensor], name: str, shape: torch.Size, *, source: int) -> Tensor:
    if name not in coefficients:
        raise InvalidInput(
            f"the coefficients of source {source} have no entry for tensor {name!r}; "
            "give one for every floating-point tensor, a single number where it needs no more"
        )
    given = coefficients[name]
    where = f"the coefficient of source {source} for tensor {name!r}"
    if not isinstance(given, Tensor) or not given.is_floating_point():
        kind = str(given.dtype) if isinstance(given, Tensor) else type(given).__name__
        raise InvalidInput(f"{where} is {kind}; give a floating-point tensor")
    if not _broadcasts(given.shape, shape):
        raise InvalidInput(
            f"{where} has the shape {list(given.shape)}, which does not broadcast to {list(shape)}; "
            "give one that does: [columns], [rows, 1], or [] for one number"
        )
    if not bool(torch.isfinite(given).all()):
        raise InvalidInput(f"{where} is not finite; coefficients are finite numbers")
    return given.detach()


def _broadcasts(given: torch.Size, shape: torch.Size) -> bool:
    return len(given) <= len(shape) and all(
        mine in (1, theirs) for mine, theirs in zip(reversed(given), reversed(shape), strict=False)
    )
