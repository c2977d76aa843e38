"""Stored weights: what the trainer `fine-tune` leaves."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from evomerge.errors import InvalidInput
from evomerge.tensors.rule_tensors import RuleTensors


def merge_stored(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """theta = the parameter `weights` of the one source, whose own weights are not read.

    Yields:
        (name, tensor), each once, in the order of the rule's names, in float32, or float64 where the source is.

    Raises:
        InvalidInput: a tensor has no stored weights, or of another shape or kind.
    """
    (given,) = tensors.per_source_tensors("weights")
    for name in tensors.names:
        like, stored = tensors.like(name), given.get(name)
        if stored is None:
            raise InvalidInput(f"the stored weights have no tensor {name!r}; give one for every floating-point tensor")
        if stored.shape != like.shape or not stored.is_floating_point():
            raise InvalidInput(
                f"the stored weights of {name!r} are {str(stored.dtype).removeprefix('torch.')} of shape "
                f"{list(stored.shape)}; give a floating-point tensor of shape {list(like.shape)}"
            )
        yield name, stored.detach().to(like.device, tensors.dtype([name]), copy=True)
