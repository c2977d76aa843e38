"""Which function computes which method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from evomerge.errors import unknown_name
from evomerge.merging.column_linear import merge_column_linear
from evomerge.merging.dare import merge_dare_linear, merge_dare_ties
from evomerge.merging.group import Group
from evomerge.merging.linear import merge_linear
from evomerge.merging.slerp import merge_slerp
from evomerge.merging.task_arithmetic import merge_task_arithmetic
from evomerge.merging.thresholds import Thresholds
from evomerge.merging.ties import merge_ties
from evomerge.methods import OptionValue

METHOD_FUNCTIONS: dict[str, Callable[[Group], Iterator[tuple[str, Tensor]]]] = {
    "linear": merge_linear,
    "column_linear": merge_column_linear,
    "slerp": merge_slerp,
    "task_arithmetic": merge_task_arithmetic,
    "ties": merge_ties,
    "dare_linear": merge_dare_linear,
    "dare_ties": merge_dare_ties,
}


def merge_group(
    method: str,
    names: Sequence[str],
    base: Mapping[str, Tensor] | None,
    sources: Sequence[Mapping[str, Tensor]],
    parameters: Mapping[str, float | Sequence[Any]],
    options: Mapping[str, OptionValue],
    *,
    seed: int,
    thresholds: Thresholds | None = None,
    scope_names: Sequence[str] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Merge the tensors of one recipe rule, one after the other.

    Args:
        names: the floating-point tensors to merge.
        base, sources: name -> tensor, of any float dtype and possibly read-only; never written into. A result is
            computed on the device of the base's tensor (without a base: of the first source's).
        parameters, options: all of them, as resolved by `evomerge.methods.validate`.
        seed: key of the random masks.
        thresholds: order statistics of the task vectors from a table; None counts them exactly. With a table, TIES
            keeps all elements tied at a threshold, and `dare_ties` infers the thresholds of masked vectors.
        scope_names: the tensors that `trim_scope: global` extends over, each tied tensor once; None: `names`. Under
            `trim_scope: layer_group` the scope is `names`.

    Yields:
        (name, merged tensor) in float32 (float64 where an input is) and in memory of its own, each once, in the
        order of `names`.

    Raises:
        InvalidInput: unknown method, or a tensor that is not floating-point.
        MergeError: the parameters give no merge: weights that sum to zero are to be normalised.
    """
    if method not in METHOD_FUNCTIONS:
        raise unknown_name("merge method", method, METHOD_FUNCTIONS)
    scope = tuple(names if scope_names is None else scope_names)
    return METHOD_FUNCTIONS[method](
        Group(tuple(names), base, tuple(sources), parameters, options, seed, thresholds, scope)
    )
