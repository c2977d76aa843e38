"""The tensors of a base model as an adapter changes them, each computed when it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evomerge.tensors.common_dtype import common_dtype
from evomerge.tensors.computed_tensors import ComputedTensors
from evomerge.tensors.one_thread import one_thread

Tensors = Mapping[str, Tensor]

# Elements of a product that are made together. CPU: few enough that those of several adapters stay in the cache until
# they are merged; blocks of half the size leave holes in the heap. Elsewhere: as many as a kernel gets.
CPU_BLOCK = 1 << 19
DEVICE_BLOCK = 1 << 24


@dataclass(frozen=True)
class LowRank:
    """The matrix scale * left @ right.

    Attributes:
        left: [rows, rank].
        right: [rank, columns].
    """

    left: Tensor
    right: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return len(self.right)

    @property
    def row_blocks(self) -> range:
        """The first rows of what is made together."""
        block = CPU_BLOCK if self.left.device.type == "cpu" else DEVICE_BLOCK
        return range(0, len(self.left), max(1, block // max(1, self.right.shape[1])))

    def rows(self, start: int, stop: int) -> LowRank:
        """The product's own rows from one to another."""
        return LowRank(self.left[start:stop], self.right, self.scale)

    def add_to(self, matrix: Tensor) -> None:
        """Add it to a matrix in place. The bits are the same for any number of threads."""
        left, right = (factor.to(matrix.device, matrix.dtype) for factor in (self.left, self.right))
        blocks = self.row_blocks
        with one_thread():
            for start in blocks:
                block = slice(start, start + blocks.step)
                matrix[block] += (left[block] @ right).mul_(self.scale)


@dataclass(frozen=True, kw_only=True)
class Change:
    """An adapter's change of one tensor: replaced, then added to, then given other norms.

    Attributes:
        whole: values of the tensor instead of the base's; of an embedding of another number of tokens only the rows
            that both have are taken.
        product: added to the tensor.
        magnitude: norms of the rows of the result, of its columns where the weight is stored transposed (DoRA, arXiv
            2402.09353, eq. 5).
        transposed: whether the tensor is stored as [inputs, outputs].
    """

    whole: Tensor | None = None
    product: LowRank | None = None
    magnitude: Tensor | None = None
    transposed: bool = False

    @property
    def low_rank(self) -> LowRank | None:
        """The product, where it is the whole change."""
        return self.product if self.whole is None and self.magnitude is None else None

    def apply(self, base: Tensor) -> Tensor:
        """The changed tensor in new memory on the base's device, in float32, or in float64 where the base is."""
        changed = base.detach().to(_wide(base), copy=True)
        if self.whole is not None:
            copied = common_rows(changed, self.whole)
            copied[0].copy_(copied[1])
        if self.product is not None:
            self.product.add_to(changed)
        if self.magnitude is not None:
            outputs = changed.T if self.transposed else changed
            with one_thread():
                norms = torch.linalg.norm(outputs, dim=1)
            outputs *= (self.magnitude.to(changed.device, changed.dtype).reshape(-1) / norms)[:, None]
        return changed

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that it holds."""
        product = () if self.product is None else (self.product.left, self.product.right)
        return [each for each in (self.whole, self.magnitude, *product) if each is not None]

    def moved(self, move: Callable[[Tensor], Tensor]) -> Change:
        """The same change in other memory."""
        product = self.product
        return replace(
            self,
            whole=None if self.whole is None else move(self.whole),
            product=None if product is None else LowRank(move(product.left), move(product.right), product.scale),
            magnitude=None if self.magnitude is None else move(self.magnitude),
        )


class AdaptedTensors(ComputedTensors):
    """A model by tensor name: the base's own tensors, and those that an adapter changes, made anew at every reading.

    Nobody writes to what it gives. A changed tensor is float32, whatever the base is stored in: a change is mostly too
    small for 16 bits.
    """

    def __init__(self, base: Tensors, changes: Mapping[str, Change]) -> None:
        self.base = base
        self.changes = changes

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.base[name]
        return self.changes[name].apply(tensor) if name in self.changes else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)

    def is_computed(self, name: str) -> bool:
        return name in self.changes

    def row_blocks(self, name: str) -> range | None:
        product = self.changes[name].low_rank
        return None if product is None else product.row_blocks

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        product = self.changes[name].low_rank
        if product is None:  # it has no blocks
            return super().rows(name, start, stop)
        return Change(product=product.rows(start, stop)).apply(self.base[name][start:stop])

    def dtype_of(self, name: str) -> torch.dtype:
        tensor = self.base[name]
        return _wide(tensor) if name in self.changes else tensor.dtype

    @property
    def held(self) -> list[Tensor]:
        """The tensors that it holds beside the base's."""
        return [tensor for change in self.changes.values() for tensor in change.tensors]

    def over(self, base: Tensors, move: Callable[[Tensor], Tensor]) -> AdaptedTensors:
        """The same changes, in the memory that `move` gives, of the same base in other memory."""
        return AdaptedTensors(base, {name: change.moved(move) for name, change in self.changes.items()})


def _wide(base: Tensor) -> torch.dtype:
    return common_dtype(base.dtype, torch.float32)


def common_rows(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors, where they differ in their number of rows without the rows that only one of them has."""
    if one.shape == other.shape:
        return one, other
    rows = min(len(one), len(other))
    return one[:rows], other[:rows]
