"""The dtype in which tensors of two dtypes meet."""

from __future__ import annotations

import torch


def common_dtype(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """The dtype that holds the numbers of both, as `torch.promote_types` gives it.

    Torch promotes no 8-bit floating-point numbers; beside another dtype they count as float32.
    """
    return one if one == other else torch.promote_types(_promoted(one), _promoted(other))


def _promoted(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.is_floating_point and dtype.itemsize == 1 else dtype
