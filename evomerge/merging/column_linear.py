"""A weighted sum of models with a weight per input column: what DAM trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.errors import InvalidInput
from evomerge.merging.group import CPU_PIECE, DEVICE_PIECE, Group


@dataclass(frozen=True)
class NonLinearity:
    """What a raw coefficient c goes through before it multiplies a weight.

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


def merge_column_linear(group: Group) -> Iterator[tuple[str, Tensor]]:
    """theta = sum_i phi(c_i) * theta_i, with c_i broadcast to the tensor (DAM, arXiv 2410.08371).

    Parameter `coefficients`: for each source, in source order, {tensor name: c_i}. A coefficient is a floating-point
    tensor of any shape that broadcasts to its weight: [in] scales the columns of an [out, in] weight, [in, 1] the rows
    of a weight that is stored [in, out], [] the whole tensor. The operations are those of `linear`, so that constant
    coefficients give the bits of `linear` without the division by the sum.

    Yields:
        (name, merged tensor), each once, in the order of the group's names.

    Raises:
        InvalidInput: a tensor has no coefficient, or one that does not broadcast or is not finite.
    """
    coefficients = group.per_source_tensors("coefficients")
    phi = str(group.options["phi"])
    for name in group.names:
        shape = group.like(name).shape
        factors = [_factor(each, index, name, shape, phi) for index, each in enumerate(coefficients)]
        yield name, _weighted_rows(group, name, factors)


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


def _weighted_rows(group: Group, name: str, factors: list[Tensor]) -> Tensor:
    like, dtype = group.like(name), group.dtype([name])
    shape = tuple(like.shape) or (1,)
    weights = [source[name].detach().reshape(shape) for source in group.sources]
    # Views with stride 0: no coefficient is ever written out to the size of its weight.
    spread = [factor.to(like.device, dtype).expand(shape) for factor in factors]
    merged = torch.empty(shape, dtype=dtype, device=like.device)
    for block in row_blocks(shape, like.device):
        total = merged[block]
        scratch = torch.empty_like(total)
        for index, (weight, factor) in enumerate(zip(weights, spread, strict=True)):
            torch.mul(weight[block].to(like.device, dtype), factor[block], out=scratch if index else total)
            if index:
                total += scratch
    return merged.reshape(like.shape)


def _factor(coefficients: Mapping[str, Tensor], source: int, name: str, shape: torch.Size, phi: str) -> Tensor:
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
    return apply(phi, given.detach())


def _broadcasts(given: torch.Size, shape: torch.Size) -> bool:
    return len(given) <= len(shape) and all(
        mine in (1, theirs) for mine, theirs in zip(reversed(given), reversed(shape), strict=False)
    )
