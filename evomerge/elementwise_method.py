"""A merge method made of one function, for `METHODS`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from evomerge.code_digest import code_digest
from evomerge.errors import InvalidInput
from evomerge.methods import MethodInfo, Parameter
from evomerge.tensors.rule_tensors import Piece, RuleTensors

__all__ = ["Piece", "elementwise_method"]

Interval = tuple[float, float]


def elementwise_method(
    function: Callable[..., Tensor],
    *,
    shared: Mapping[str, Interval] | None = None,
    per_source: Mapping[str, Interval] | None = None,
    needs_base: bool = True,
) -> MethodInfo:
    """The description of a merge method whose arithmetic is one function of tensors, element by element.

    `function(piece, **parameters)` returns the merged elements: a tensor as long as those of the piece, [n], float32
    (float64 where a source is), in new memory. `piece.base` and `piece.sources` are such tensors, and
    `piece.task_vectors()` are source minus base; it must not write into the first two. The name of the function
    becomes that of the method, and the first line of its docstring the title. The digest of its text is part of what
    a study may not change, see `code_digest`.

    Args:
        shared: parameter -> the ends of its range, for parameters that are one number.
        per_source: likewise for those that are one number per source, a tuple in the order of the sources.
        needs_base: whether a merge without a base is refused.

    Raises:
        InvalidInput: a range has no middle, which is the default; or the function does not take the parameters.
    """
    parameters = [_parameter(name, ends, False) for name, ends in (shared or {}).items()]
    of_sources = [_parameter(name, ends, True) for name, ends in (per_source or {}).items()]
    name = function.__name__
    _check_signature(function, [each.name for each in (*of_sources, *parameters)])
    return MethodInfo(
        name=name,
        title=(inspect.getdoc(function) or name).splitlines()[0],
        paper="none: a function of its user's",
        merge=_Elementwise(function),
        shared=tuple(parameters),
        per_source=tuple(of_sources),
        needs=frozenset({"base"} if needs_base else ()),
        elementwise=True,
        version=code_digest(function),
    )


@dataclass(frozen=True)
class _Elementwise:
    """The function of a method, applied to all tensors of a rule."""

    function: Callable[..., Tensor]

    def __call__(self, tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
        values = dict(tensors.parameters)

        def merged(piece: Piece) -> Tensor:
            result = self.function(piece, **values)
            if result.shape != piece.sources[0].shape:
                raise InvalidInput(
                    f"the merge method {self.function.__name__!r} returned a tensor of shape {tuple(result.shape)} for "
                    f"a piece of shape {tuple(piece.sources[0].shape)}; one number per element is allowed"
                )
            return result

        for name in tensors.names:
            yield name, tensors.merge(name, merged)


def _parameter(name: str, ends: Interval, per_source: bool) -> Parameter:
    low, high = ends
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InvalidInput(f"the range of parameter {name!r} is {low} to {high}; give two numbers, the lower one first")
    return Parameter(
        name=name, per_source=per_source, low=low, high=high, default=(low + high) / 2, description="see its function"
    )


def _check_signature(function: Callable[..., Any], parameters: list[str]) -> None:
    try:
        inspect.signature(function).bind(None, **dict.fromkeys(parameters))
    except TypeError as error:
        raise InvalidInput(
            f"{function.__name__}(piece, {', '.join(parameters)}) is how the merge method will be called, but its "
            f"function does not take that: {error}"
        ) from None
