"""Tensors in the dtype of a merge, refused where it cannot hold them."""

from __future__ import annotations

import torch

from evomerge.errors import MergeError

_CHECKED = 1 << 20  # elements that are checked together


def check_finite(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor.

    Raises MergeError where an element is not finite.
    """
    if not _is_finite(tensor):
        raise MergeError(f"tensor {name!r} of the merge is not finite in {_dtype(tensor)}")
    return tensor


def rounded_copy(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of the base that a merge leaves as it is, in the merge's dtype. Integers keep theirs, and so do infinite
    elements, such as those of a stored mask.

    Raises MergeError where a finite element is not finite in that dtype.
    """
    if not tensor.is_floating_point() or tensor.dtype == dtype:
        return tensor
    rounded = tensor.to(dtype)
    if not _is_finite(rounded) and not torch.equal(torch.isfinite(tensor), torch.isfinite(rounded)):
        raise MergeError(
            f"tensor {name!r}, which the merge has from the base, is not finite in {_dtype(rounded)}; merge in another "
            f"dtype, such as the {_dtype(tensor)} of the base"
        )
    return rounded


def _is_finite(tensor: torch.Tensor) -> bool:
    flat = tensor.reshape(-1)  # by pieces: the check of a whole tensor takes twice its memory
    pieces = (flat[start : start + _CHECKED] for start in range(0, flat.numel(), _CHECKED))
    return all(bool(torch.isfinite(piece).all()) for piece in pieces)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
