"""Places of stored tensors in a live model: a slice of a live tensor, or one memory that several live tensors share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from evomerge.errors import InvalidInput
from evomerge.messages import some


@dataclass(frozen=True, kw_only=True)
class StridedView:
    """A view of a contiguous tensor: element (i, j, …) is number offset + i * strides[0] + j * strides[1] + … of it."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def covers(self, shape: Sequence[int]) -> bool:
        """Whether it is all of a tensor of that shape, element by element."""
        whole = torch.empty(shape, device="meta")
        return (self.shape, self.strides, self.offset) == (tuple(whole.shape), whole.stride(), 0)

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The view of a tensor, in its memory where that has the numbers in order, else in that of a copy."""
        whole = tensor.detach().contiguous()
        return whole.as_strided(self.shape, self.strides, whole.storage_offset() + self.offset)


@dataclass(frozen=True, kw_only=True)
class Hosted:
    """A stored tensor that is a slice of a live one, such as a matrix of one expert in the stack of all."""

    live: str
    view: StridedView

    @property
    def live_names(self) -> tuple[str, ...]:
        return (self.live,)

    def tensor(self, live: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The slice: whoever writes to it writes to the live tensor."""
        whole = live[self.live]
        if not whole.is_contiguous():
            whole.data = whole.detach().contiguous()
        return self.view.of(whole)

    def stored_form(self, _: str, numbers: torch.Tensor) -> torch.Tensor:
        """Numbers of the live tensor, such as its gradient, in the stored form; they may share the memory."""
        return self.view.of(numbers)


@dataclass(frozen=True, kw_only=True)
class Hosting:
    """A stored tensor of which several live ones are slices, such as queries, keys and values that are stored as one.

    Attributes:
        shape: of the stored tensor.
        views: (live name, slice of the stored tensor), which together are all of it.
    """

    shape: tuple[int, ...]
    views: tuple[tuple[str, StridedView], ...]

    @property
    def live_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.views)

    def tensor(self, live: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """A tensor of the stored form, which becomes the memory of the live ones with the numbers that they have.

        Raises:
            InvalidInput: the model class keeps them in different dtypes.
        """
        first = live[self.live_names[0]]
        if len({live[name].dtype for name in self.live_names}) > 1:
            raise InvalidInput(f"the model class keeps {some(self.live_names)}, which are stored as one, in two dtypes")
        memory = torch.empty(self.shape, dtype=first.dtype, device=first.device)
        for name, view in self.views:
            part = view.of(memory)
            part.copy_(live[name].detach())
            live[name].data = part
        return memory

    def stored_form(self, live: str, numbers: torch.Tensor) -> torch.Tensor:
        """Numbers of one of the live tensors in the stored form, with zeros where the others are."""
        whole = torch.zeros(self.shape, dtype=numbers.dtype, device=numbers.device)
        dict(self.views)[live].of(whole).copy_(numbers)
        return whole


LivePlace: TypeAlias = Hosted | Hosting
