"""Distances between the weights of two models: cheap predictors of how well the two can be merged.

SSD and TSSD are those of "An empirical study of multimodal model merging", arXiv 2304.14933; L2 and cosine are its
baselines. Vectors are read in pieces and added up in float64, so that memory stays small at any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from numbers import Real

import torch
from torch import Tensor

from evomerge.errors import InvalidInput
from evomerge.merging.named_tensors import common_names
from evomerge.merging.order_statistics import kth_smallest_magnitude
from evomerge.merging.sums import ordered_sum
from evomerge.merging.ties import kept_rank

Vector = Tensor | Mapping[str, Tensor]
"""A tensor, or `{tensor name: tensor}`, read as one vector: its tensors flattened and concatenated by sorted name."""

Pair = tuple[Tensor, Tensor]

PIECE = 1 << 20

_NARROW = (torch.float32, torch.bfloat16, torch.float16)  # every value of theirs is one of float32
_TINY = torch.finfo(torch.float64).tiny  # makes 0 of 0 / 0 and is below every float32


def l2(x: Vector, y: Vector) -> float:
    """|x - y|, the Euclidean distance.

    Args:
        x, y: two vectors of one shape.

    Raises:
        InvalidInput: the vectors do not have the same names and shapes, or hold values that are complex or not finite.
    """
    return math.sqrt(ordered_sum((one - other).square_() for one, other in _pairs(x, y)))


def cosine(x: Vector, y: Vector) -> float:
    """1 - <x, y> / (|x| |y|), from 0 (same direction) to 2. Two zero vectors have distance 0, a zero and another 1.

    Args, Raises:
        As `l2`.
    """
    inner = ordered_sum(one * other for one, other in _pairs(x, y))
    norms = [math.sqrt(ordered_sum(pair[index].square() for pair in _pairs(x, y))) for index in (0, 1)]
    if not all(norms):
        return 1.0 if any(norms) else 0.0
    return 1.0 - min(1.0, max(-1.0, inner / norms[0] / norms[1]))


def ssd(x: Vector, y: Vector) -> float:
    """Soft sign dissimilarity: 1 - mean of |x_j + y_j| / (|x_j| + |y_j|) over those j where x_j and y_j are not both 0.

    It is 0 where all signs agree and 1 where y = -x. Two zero vectors have distance 0.

    Args, Raises:
        As `l2`.
    """
    return _ssd(lambda: _pairs(x, y))


def tssd(x: Vector, y: Vector, keep: float = 0.5) -> float:
    """Truncated soft sign dissimilarity: `ssd` of the largest magnitudes of each vector.

    Args:
        x, y: as for `l2`.
        keep: share of each vector of d elements: the int(d * keep) + 1 largest magnitudes and those tied with the last
            of them stay, as TIES trims; the others are set to 0. With 1 everything stays.

    Raises:
        InvalidInput: as `l2`, or `keep` is not between 0 and 1.
    """
    if isinstance(keep, bool) or not isinstance(keep, Real) or not 0 <= float(keep) <= 1:
        raise InvalidInput(f"keep is a share from 0 to 1, but got {keep!r}")
    tensors = _tensors(x, y)
    rank = kept_rank("ge_kth", float(keep), sum(one.numel() for one, _ in tensors))
    if rank == 0:  # everything stays
        return ssd(x, y)
    narrow = all(tensor.dtype in _NARROW for pair in tensors for tensor in pair)
    dtype = torch.float32 if narrow else torch.float64
    cuts = [_kth_magnitude(x, y, index, k=rank, dtype=dtype) for index in (0, 1)]
    return _ssd(lambda: ((_trimmed(one, cuts[0]), _trimmed(other, cuts[1])) for one, other in _pairs(x, y)))


def _kth_magnitude(x: Vector, y: Vector, index: int, k: int, dtype: torch.dtype) -> float:
    return kth_smallest_magnitude(lambda: (pair[index] for pair in _pairs(x, y)), k, dtype)


def _trimmed(piece: Tensor, threshold: float) -> Tensor:
    return torch.where(piece.abs() >= threshold, piece, 0.0)


def _ssd(pairs: Callable[[], Iterator[Pair]]) -> float:
    agreement, counted = 0.0, 0
    for one, other in pairs():
        mass = one.abs() + other.abs()
        agreement += ordered_sum([(one + other).abs_() / mass.clamp(min=_TINY)])
        counted += int(mass.count_nonzero())
    return 1.0 - agreement / counted if counted else 0.0


def _pairs(x: Vector, y: Vector) -> Iterator[Pair]:
    """Corresponding pieces of both vectors in float64, never written into."""
    for one, other in _tensors(x, y):
        flat = one.detach().reshape(-1), other.detach().reshape(-1)
        for start in range(0, one.numel(), PIECE):
            pieces = [each[start : start + PIECE].to("cpu", torch.float64) for each in flat]
            if not all(bool(torch.isfinite(piece).all()) for piece in pieces):
                raise InvalidInput("distances are defined for finite numbers, but a tensor holds NaN or infinity")
            yield pieces[0], pieces[1]


def _tensors(x: Vector, y: Vector) -> list[Pair]:
    """Corresponding tensors of both vectors, by sorted name."""
    one, other = (vector if isinstance(vector, Mapping) else {"": vector} for vector in (x, y))
    return [(one[name], other[name]) for name in common_names([one, other])]
