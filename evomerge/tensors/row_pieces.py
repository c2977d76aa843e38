"""The tensors of a rule as matrices, in pieces that hold whole rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from evomerge.tensors import rule_tensors
from evomerge.tensors.rule_tensors import Piece, RuleTensors


def row_pieces(
    tensors: RuleTensors, name: str, sources: Sequence[int] | None = None, *, stack: bool = True
) -> Iterator[Piece]:
    """The pieces of one tensor in order, each with whole rows: [rows, width] in place of a flat slice.

    Args:
        sources: those wanted; None: all.
        stack: see `matrix_shape`.
    """
    like, dtype = tensors.like(name), tensors.dtype([name])
    chosen = tensors.sources if sources is None else [tensors.sources[index] for index in sources]
    models = [*([] if tensors.base is None else [tensors.base]), *chosen]
    if like.numel() == 0:
        return
    shape = matrix_shape(like, stack=stack)
    matrices = [model[name].detach().reshape(shape) for model in models]
    size = rule_tensors.CPU_PIECE if like.device.type == "cpu" else rule_tensors.DEVICE_PIECE
    step = max(1, size // shape[1])
    for start in range(0, shape[0], step):
        rows = [matrix[start : start + step].to(like.device, dtype) for matrix in matrices]
        base = None if tensors.base is None else rows.pop(0)
        yield Piece(start * shape[1], base, rows)


def merge_rows(tensors: RuleTensors, name: str, kernel: Callable[[Piece], Tensor], *, stack: bool = True) -> Tensor:
    """The tensor that a function makes of its rows, in the dtype `rounded` and in new memory. See `matrix_shape`."""
    like = tensors.like(name)
    merged = torch.empty(like.shape, dtype=tensors.rounded or tensors.dtype([name]), device=like.device)
    flat = merged.view(-1)
    for piece in row_pieces(tensors, name, stack=stack):
        flat[piece.start : piece.stop] = kernel(piece).reshape(-1)
    return merged


def matrix_shape(like: Tensor, *, stack: bool = True) -> tuple[int, int]:
    """Rows and width of a tensor with elements. One of fewer than two dimensions is one row.

    Args:
        stack: one of more than two dimensions is a stack of matrices, such as the experts of a mixture, and has their
            rows; otherwise it has a row for every first index.
    """
    if like.dim() < 2:
        return 1, like.numel()
    width = like.shape[-1] if stack else like.numel() // like.shape[0]
    return like.numel() // width, width
