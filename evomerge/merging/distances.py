"""Distances between the weights of two models: cheap predictors of how well the two can be merged.

SSD and TSSD are those of "An empirical study of multimodal model merging", arXiv 2304.14933; L2 and cosine are its
baselines. Vectors are read in pieces and added up in float64, so that memory stays small at any size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real

import torch
from torch import Tensor

from evomerge.elementwise.ties import kept_rank
from evomerge.errors import InvalidInput
from evomerge.tensors.named_tensors import common_names
from evomerge.tensors.order_statistics import kth_smallest_magnitude
from evomerge.tensors.sums import ordered_sum

__all__ = ["cosine", "l2", "ssd", "tssd"]

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
    return math.sqrt(ordered_sum((one - other).square_() for one, other in _Compared(x, y).pairs()))


def cosine(x: Vector, y: Vector) -> float:
    """1 - <x, y> / (|x| |y|), from 0 (same direction) to 2. Two zero vectors have distance 0, a zero and another 1.

    Args, Raises:
        As `l2`.
    """
    inner, squares = 0.0, [0.0, 0.0]
    for one, other in _Compared(x, y).pairs():
        inner += ordered_sum([one * other])
        squares = [squares[0] + ordered_sum([one.square()]), squares[1] + ordered_sum([other.square()])]
    if not all(squares):
        return 1.0 if any(squares) else 0.0
    return 1.0 - min(1.0, max(-1.0, inner / math.sqrt(squares[0]) / math.sqrt(squares[1])))


def ssd(x: Vector, y: Vector) -> float:
    """Soft sign dissimilarity: 1 - mean of |x_j + y_j| / (|x_j| + |y_j|) over those j where x_j and y_j are not both 0.

    It is 0 where all signs agree and 1 where y = -x. Two zero vectors have distance 0.

    Args, Raises:
        As `l2`.
    """
    return _ssd(_Compared(x, y).pairs())


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
    compared = _Compared(x, y)
    rank = kept_rank("ge_kth", float(keep), compared.elements)
    if rank == 0:  # everything stays
        return _ssd(compared.pairs())
    cuts = compared.kth_magnitude(0, rank), compared.kth_magnitude(1, rank)
    return _ssd((_trimmed(one, cuts[0]), _trimmed(other, cuts[1])) for one, other in compared.pairs())


def _trimmed(piece: Tensor, threshold: float) -> Tensor:
    return torch.where(piece.abs() >= threshold, piece, 0.0)


def _ssd(pairs: Iterable[Pair]) -> float:
    agreement, counted = 0.0, 0
    for one, other in pairs:
        mass = one.abs() + other.abs()
        agreement += ordered_sum([(one + other).abs_() / mass.clamp(min=_TINY)])
        counted += int(mass.count_nonzero())
    return 1.0 - agreement / counted if counted else 0.0


class _Compared:
    """Two vectors that fit together. Their mappings may compute a tensor whenever it is asked for."""

    def __init__(self, x: Vector, y: Vector) -> None:
        self._vectors = [vector if isinstance(vector, Mapping) else {"": vector} for vector in (x, y)]
        self._names = common_names(self._vectors)
        self.elements, narrow = 0, True
        for name in self._names:
            both = [vector[name] for vector in self._vectors]
            self.elements += both[0].numel()
            narrow &= all(tensor.dtype in _NARROW for tensor in both)
        self._dtype = torch.float32 if narrow else torch.float64

    def pairs(self) -> Iterator[Pair]:
        """Corresponding pieces of both vectors in float64, never written into."""
        for name in self._names:
            flat = [vector[name].detach().reshape(-1) for vector in self._vectors]
            for start in range(0, flat[0].numel(), PIECE):
                one, other = (each[start : start + PIECE].to("cpu", torch.float64) for each in flat)
                if not all(bool(torch.isfinite(piece).all()) for piece in (one, other)):
                    where = f"tensor {name!r}" if name else "the tensor"
                    raise InvalidInput(f"distances are defined for finite numbers, but {where} holds NaN or infinity")
                yield one, other

    def kth_magnitude(self, index: int, k: int) -> float:
        """The k-th smallest magnitude of the first (index 0) or second vector, k counted from 1."""
        return kth_smallest_magnitude(lambda: (pair[index] for pair in self.pairs()), k, self._dtype)
