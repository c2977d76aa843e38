"""The record of a conversion that only moves numbers, on tensors without any, and the views that it amounts to.

No stack of matrices has to be taken apart to write one of them: read backwards, the record tells where in the stack the
matrix is. Every step is one of torch's own operations, so that no conversion of transformers is named here.

Covered: stacking, concatenating, splitting, transposing, reshaping. Not covered: moves after which a tensor has no
stride per dimension any longer (interleaved rows), and arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from evomerge.conversion.live_places import Hosted, Hosting, LivePlace, StridedView

_ATEN = torch.ops.aten

# These give the same numbers in the same order.
_COPIES = frozenset({_ATEN.clone.default, _ATEN.alias.default, _ATEN.detach.default, _ATEN.lift_fresh.default})
_RESHAPES = frozenset({_ATEN.view.default, _ATEN._unsafe_view.default, _ATEN.reshape.default})
_VIEWS = frozenset(
    {
        _ATEN.split.Tensor,
        _ATEN.split_with_sizes.default,
        _ATEN.unbind.int,
        _ATEN.slice.Tensor,
        _ATEN.select.int,
        _ATEN.transpose.int,
        _ATEN.permute.default,
        _ATEN.unsqueeze.default,
        _ATEN.squeeze.dim,
    }
)


class NoView(Exception):
    """An operation after which no tensor is a view of another."""


@dataclass(frozen=True)
class _Step:
    operation: Any
    arguments: Sequence[Any]
    made: Tensor | Sequence[Tensor]


class MoveRecord(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Everything that torch does inside of `with MoveRecord() as record`. It keeps all tensors alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._steps: list[_Step] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        self._steps.append(_Step(func, tuple(args), made))
        return made

    def places(self, stored: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> dict[str, LivePlace]:
        """The places of the tensors that went in among those that came out. All are on the meta device.

        Raises:
            NoView: they are no views of each other, or do not hold the same numbers.
        """
        if sum(tensor.numel() for tensor in stored.values()) != sum(tensor.numel() for tensor in live.values()):
            raise NoView("numbers are left out or come up twice")
        try:
            return self._inside_live(stored, live)
        except NoView:
            if len(stored) != 1:
                raise
        name, tensor = next(iter(stored.items()))
        return {name: self._around_live(tensor, live)}

    def _inside_live(self, stored: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> dict[str, LivePlace]:
        """Each stored tensor as a view of a live one: the steps are followed from their ends to their beginnings."""
        found: dict[str, LivePlace] = {}
        for live_name, made in live.items():
            views = {id(made): torch.empty(made.shape, device="meta")}
            for step in reversed(self._steps):
                if isinstance(step.made, Tensor) and id(step.made) in views:
                    for argument, view in _undone(step, views[id(step.made)]):
                        if id(argument) in views:
                            raise NoView("a tensor is in two places")
                        views[id(argument)] = view
            for name, tensor in stored.items():
                if id(tensor) in views and name in found:
                    raise NoView(f"{name} is in two places")
                if id(tensor) in views:
                    found[name] = Hosted(live=live_name, view=_strided(views[id(tensor)]))
        if found.keys() != stored.keys():
            raise NoView("it splits what is stored")
        return found

    def _around_live(self, stored: Tensor, live: Mapping[str, Tensor]) -> Hosting:
        """Each live tensor as a view of the stored one, with its numbers in order, as the model class makes it."""
        views = {id(stored): torch.empty(stored.shape, device="meta")}
        for step in self._steps:
            for made, view in _done(step, views):
                views[id(made)] = view
        parts = []
        for name, made in live.items():
            if id(made) not in views or not views[id(made)].is_contiguous():
                raise NoView("it reorders parts of what is stored, or computes with them")
            parts.append((name, _strided(views[id(made)])))
        end = 0
        for part in sorted((part for _, part in parts), key=lambda part: part.offset):
            if part.offset != end:
                raise NoView("numbers are left out or come up twice")
            end += math.prod(part.shape)
        return Hosting(shape=tuple(stored.shape), views=tuple(parts))


def _undone(step: _Step, view: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The arguments of a step as views of what it made, given the view that this is."""
    operation, (first, *rest) = step.operation, step.arguments
    if operation is _ATEN.cat.default:
        dim, start = rest[0] if rest else 0, 0
        for tensor in first:
            yield tensor, view.narrow(dim, start, tensor.shape[dim])
            start += tensor.shape[dim]
    elif operation is _ATEN.stack.default:
        dim = rest[0] if rest else 0
        for index, tensor in enumerate(first):
            yield tensor, view.select(dim, index)
    elif operation in _COPIES:
        yield first, view
    elif operation in _RESHAPES:
        yield first, _reshaped(view, first.shape)
    elif operation is _ATEN.transpose.int:
        yield first, view.transpose(*rest)
    elif operation is _ATEN.permute.default:
        order = [dim % view.dim() for dim in rest[0]]
        yield first, view.permute([order.index(dim) for dim in range(view.dim())])
    elif operation is _ATEN.unsqueeze.default:
        yield first, view.squeeze(rest[0])
    elif operation is _ATEN.squeeze.dim:
        yield first, _reshaped(view, first.shape)
    else:
        raise NoView(f"it uses {operation}")


def _done(step: _Step, views: Mapping[int, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Views for all that a step made, given those of its first argument."""
    first = step.arguments[0] if step.arguments else None
    if isinstance(first, list | tuple) and len(first) == 1 and step.operation is _ATEN.cat.default:
        first, again = first[0], _unchanged
    elif step.operation in _COPIES:
        again = _unchanged
    elif step.operation in _RESHAPES:
        again = _reshaped
    elif step.operation in _VIEWS:
        again = step.operation
    else:
        return
    if not isinstance(first, Tensor) or id(first) not in views:
        return
    repeated = again(views[id(first)], *step.arguments[1:])
    if isinstance(step.made, Tensor):
        yield step.made, repeated
    else:
        yield from zip(step.made, repeated, strict=True)


def _unchanged(view: Tensor, *_: Any) -> Tensor:
    return view


def _reshaped(view: Tensor, shape: Sequence[int]) -> Tensor:
    try:
        return view.view(shape)
    except RuntimeError as error:
        raise NoView("it reorders numbers inside of a dimension") from error


def _strided(view: Tensor) -> StridedView:
    return StridedView(shape=tuple(view.shape), strides=view.stride(), offset=int(view.storage_offset()))
