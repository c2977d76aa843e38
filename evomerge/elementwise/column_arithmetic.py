"""Task arithmetic with a coefficient per input column: what the trainer `learned` learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from evomerge.elementwise.column_linear import column_coefficients, row_blocks
from evomerge.errors import InvalidInput
from evomerge.tensors.rule_tensors import RuleTensors


def merge_column_arithmetic(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """theta = theta_0 + sum_i w_i c_i tau_i, with c_i broadcast to the tensor and w_i the parameter `weight`.

    Parameter `coefficients`: as of `column_linear`. The operations are those of `task_arithmetic`, so that constant
    coefficients give the bits of `task_arithmetic` with the weights w_i c_i.

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


def write_column_arithmetic(tensors: RuleTensors, targets: Mapping[str, Tensor]) -> None:
    """The same into tensors of any float dtype that are there already: the very bits that a cast of the merge gives.

    No temporary has the size of a tensor.
    """
    for name in tensors.names:
        _write(tensors, name, targets[name])


def vector_factors(tensors: RuleTensors, name: str, shape: torch.Size) -> list[Tensor]:
    """w_i c_i of each source, in the dtype of the arithmetic; each broadcasts to the shape, which is the tensor's.

    Raises:
        InvalidInput: see `merge_column_arithmetic`.
    """
    given, weights = column_coefficients(tensors, name, shape), tensors.per_source("weight")
    return [(each.double() * weight).to(tensors.dtype([name])) for each, weight in zip(given, weights, strict=True)]


def _write(tensors: RuleTensors, name: str, target: Tensor) -> None:
    if tensors.base is None:
        raise InvalidInput("this method works on task vectors (source minus base); give the base model")
    device, dtype = target.device, tensors.dtype([name])
    shape = tuple(target.shape) or (1,)
    base = tensors.base[name].detach().reshape(shape)
    sources = [source[name].detach().reshape(shape) for source in tensors.sources]
    # Views with stride 0: no coefficient is ever written out to the size of its weight.
    spread = [factor.to(device).expand(shape) for factor in vector_factors(tensors, name, target.shape)]
    rows = target.detach().view(shape)
    for block in row_blocks(shape, device):
        start = base[block].to(device, dtype)
        total = (sources[0][block].to(device, dtype) - start).mul_(spread[0][block])
        for source, factor in zip(sources[1:], spread[1:], strict=True):
            total += (source[block].to(device, dtype) - start).mul_(factor[block])
        rows[block].copy_(total.add_(start))
