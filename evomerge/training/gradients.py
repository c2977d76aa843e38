"""Gradients of coefficients from gradients of weights, with no graph through the merge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from evomerge.merging.column_linear import row_blocks


def factor_gradients(weight_gradient: Tensor, weights: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """dL/df_i = sum over the broadcast dimensions of dL/dW * W_i, for W = sum_i f_i * W_i.

    Args:
        weight_gradient: dL/dW, of any float dtype.
        weights: the n sources W_i, of the shape of W and any float dtype.
        shape: of a factor f_i; it broadcasts to W.

    Returns:
        [n, *shape], in float32 (float64 where dL/dW is). The products are made in blocks that fit the cache.
    """
    full = tuple(weight_gradient.shape) or (1,)
    spread = (1,) * (len(full) - len(shape)) + tuple(shape)
    dtype = torch.float64 if weight_gradient.dtype == torch.float64 else torch.float32
    device = weight_gradient.device
    sums = torch.zeros(len(weights), *spread, dtype=dtype, device=device)
    flat_gradient = weight_gradient.reshape(full)
    flat_weights = [weight.detach().reshape(full) for weight in weights]
    by_row = spread[0] != 1
    summed = [dimension for dimension in range(len(full)) if spread[dimension] == 1 and full[dimension] != 1]
    for block in row_blocks(full, device):
        gradient = flat_gradient[block].to(dtype)
        product = torch.empty_like(gradient)
        for index, weight in enumerate(flat_weights):
            torch.mul(gradient, weight[block].to(device, dtype), out=product)
            part = product.sum(summed, keepdim=True) if summed else product
            target = sums[index, block] if by_row else sums[index]
            target += part
    return sums.reshape(len(weights), *shape)


@contextmanager
def taken_at_once(parameters: Mapping[str, Tensor], take: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Inside, a backward pass hands over the gradient of each parameter as soon as it is complete, and frees it.

    So there is never more than one of them, except where the model itself uses a tensor twice.
    """

    def hook_of(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None:
                take(name, gradient)

        return hook

    handles: list[Any] = []
    try:
        for name, parameter in parameters.items():
            parameter.requires_grad_(True)
            handles.append(parameter.register_post_accumulate_grad_hook(hook_of(name)))  # type: ignore[no-untyped-call]
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None
