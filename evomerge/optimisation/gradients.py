"""Gradients of coefficients from gradients of weights, with no graph through the merge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Embedding, Module

from evomerge.conversion.live_tensors import Leaf, leaves
from evomerge.elementwise.column_linear import row_blocks
from evomerge.native.weighted_vectors import factor_slopes


def factor_gradients(
    weight_gradient: Tensor, weights: Sequence[Tensor], shape: Sequence[int], base: Tensor | None = None
) -> Tensor:
    """dL/df_i = sum over the broadcast dimensions of dL/dW * W_i, for W = sum_i f_i * W_i.

    With a base for W = W_0 + sum_i f_i * (W_i - W_0): the task vectors take the place of the sources.

    Args:
        weight_gradient: dL/dW, of any float dtype; for factors that all rows share, also sparse by rows.
        weights: the n sources W_i, of the shape of W and any float dtype.
        shape: of a factor f_i; it broadcasts to W.
        base: W_0, likewise.

    Returns:
        [n, *shape], in float32 (float64 where dL/dW is), by compiled loops, or from products in blocks that fit the
        cache.
    """
    weight_gradient, base, weights = nonzero_rows(weight_gradient, base, weights)
    found = factor_slopes(weight_gradient, base, weights, shape)
    if found is not None:
        return found.float()
    full = tuple(weight_gradient.shape) or (1,)
    spread = (1,) * (len(full) - len(shape)) + tuple(shape)
    gradient = weight_gradient.reshape(full)
    vectors = _WeighedTensors([weight.detach().reshape(full) for weight in weights], base, full, gradient)
    sums = _sums_by_row if spread[0] != 1 else _sums_over_rows
    return sums(gradient, vectors, spread).reshape(len(weights), *shape)


def nonzero_rows(
    gradient: Tensor, base: Tensor | None, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor | None, Sequence[Tensor]]:
    """The rows of a gradient that `sparse_embeddings` has left, and the same rows of weights; all of a dense one.

    Rows of zeros are left out, so that tokens that nothing depends on do not change a bit of a sum.
    """
    if not gradient.is_sparse:
        return gradient, base, weights
    indices, values = gradient._indices(), gradient._values()  # as torch documents them where rows come twice
    used = values.any(dim=1)
    kept = torch.sparse_coo_tensor(indices[:, used], values[used], gradient.shape, check_invariants=False).coalesce()
    rows = kept.indices()[0]
    chosen = [weight[rows.to(weight.device)] for weight in weights]
    return kept.values(), None if base is None else base[rows.to(base.device)], chosen


class _WeighedTensors:
    """Sources, or their task vectors where there is a base, in blocks of the dtype and on the device of a gradient."""

    def __init__(
        self, weights: Sequence[Tensor], base: Tensor | None, shape: tuple[int, ...], gradient: Tensor
    ) -> None:
        self._weights = weights
        self._base = None if base is None else base.detach().reshape(shape)
        self._like = gradient.device, _dtype(gradient)

    def __len__(self) -> int:
        return len(self._weights)

    def block(self, block: slice) -> Iterator[Tensor]:
        """That block of each, one after the other."""
        start = None if self._base is None else self._base[block].to(*self._like)
        for weight in self._weights:
            part = weight[block].to(*self._like)
            yield part if start is None else part - start


def _sums_over_rows(gradient: Tensor, vectors: _WeighedTensors, spread: tuple[int, ...]) -> Tensor:
    """Sums for factors that all rows share: blocks of products are added element by element, and then their rows."""
    dtype, device = _dtype(gradient), gradient.device
    totals: list[Tensor] = []
    for block in row_blocks(tuple(gradient.shape), device):
        part = gradient[block].to(dtype)
        if totals:
            for total, each in zip(totals, vectors.block(block), strict=True):
                total[: len(part)].addcmul_(part, each)
        else:
            totals = [part * each for each in vectors.block(block)]
    summed = [dimension for dimension, size in enumerate(spread) if size == 1]
    if not totals:
        return torch.zeros(len(vectors), *spread, dtype=dtype, device=device)
    return torch.stack([total.sum(summed, keepdim=True) for total in totals])


def _sums_by_row(gradient: Tensor, vectors: _WeighedTensors, spread: tuple[int, ...]) -> Tensor:
    """Sums for factors that differ by row."""
    dtype, device = _dtype(gradient), gradient.device
    sums = torch.zeros(len(vectors), *spread, dtype=dtype, device=device)
    summed = [dimension for dimension, size in enumerate(spread) if size == 1 and dimension > 0]
    for block in row_blocks(tuple(gradient.shape), device):
        part = gradient[block].to(dtype)
        for index, vector in enumerate(vectors.block(block)):
            product = part * vector
            sums[index, block] = product.sum(summed, keepdim=True) if summed else product
    return sums


def vector_gradients(weight_gradient: Tensor, pieces: Iterable[tuple[int, Sequence[Tensor]]]) -> Tensor:
    """dL/dlambda_i = <dL/dW, tau_i>, for W = W_0 + sum_i lambda_i tau_i.

    Args:
        weight_gradient: dL/dW, of any float dtype, dense or sparse.
        pieces: (index of the first element, that piece of each of the n flattened task vectors), all of them.

    Returns:
        [n], in float64 on the CPU: the sum of the products of each piece.
    """
    flat = (weight_gradient.to_dense() if weight_gradient.is_sparse else weight_gradient).reshape(-1)
    sums = []
    for start, vectors in pieces:
        part = flat[start : start + vectors[0].numel()].to(vectors[0].device, vectors[0].dtype)
        sums.append(torch.stack([torch.dot(part, vector) for vector in vectors]).double())
    return torch.stack(sums).sum(0).cpu()


def _dtype(gradient: Tensor) -> torch.dtype:
    return torch.float64 if gradient.dtype == torch.float64 else torch.float32


@contextmanager
def sparse_embeddings(model: Module, live: Mapping[str, Tensor]) -> Iterator[None]:
    """Let forward and backward passes inside give the gradient of an embedding as the rows that were read.

    A dense one is as large as the table, and zero but for the tokens of a batch. Tables that other modules use too, as
    a tied output layer does, and those that are stored in another form keep dense gradients.
    """
    stored = {id(tensor) for tensor in live.values()}
    others = [module for module in model.modules() if not isinstance(module, Embedding)]
    used = {id(parameter) for module in others for parameter in module.parameters(recurse=False)}
    found = [
        module
        for module in model.modules()
        if isinstance(module, Embedding) and not module.sparse and id(module.weight) in stored - used
    ]
    for module in found:
        module.sparse = True
    try:
        yield
    finally:
        for module in found:
            module.sparse = False


@contextmanager
def stream_gradients(
    live: Mapping[str, Tensor], names: Iterable[str], take: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Let a backward pass inside hand over the gradient of each tensor as soon as it is complete, and free it.

    So there is never more than one gradient, except where the model itself uses a tensor twice.

    Args:
        live: the live tensors. Of one that the model keeps in several, `take` gets a gradient for each of them, with
            zeros where the others are: what it does is linear in the gradient.
        names: of those that gradients are wanted of.
    """

    def hook_of(leaf: Leaf) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None:
                for name, form in leaf.forms.items():
                    take(name, form(gradient))

        return hook

    handles: list[Any] = []
    found = leaves(live, names)
    try:
        for leaf in found:
            leaf.tensor.requires_grad_(True)
            hook = hook_of(leaf)
            handles.append(leaf.tensor.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
        yield
    finally:
        for handle in handles:
            handle.remove()
        for leaf in found:
            leaf.tensor.requires_grad_(False)
            leaf.tensor.grad = None
