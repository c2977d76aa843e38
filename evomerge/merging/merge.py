"""Merging of one recipe rule by the function of its method."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from evomerge.methods import method_info
from evomerge.methods.functions import load_function
from evomerge.tensors.rule_tensors import RuleTensors


def merge_rule(method: str, tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """Merge the tensors of one recipe rule, one after the other.

    Yields:
        (name, merged tensor) in float32 (float64 where an input is), or by most methods in the dtype `rounded` of the
        tensors, and in new memory, each once, in the order of the rule's names.

    Raises:
        InvalidInput: unknown method, or a tensor that is not floating-point.
        MergeError: the parameters give no merge: weights that sum to zero are to be normalised.
    """
    merged: Iterator[tuple[str, Tensor]] = load_function(method_info(method).merge)(tensors)
    return merged
