"""Vectors given as `{tensor name: tensor}`, checked at the door of the functions that take several of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from evomerge.errors import InvalidInput
from evomerge.messages import some


def check_tensors(what: str, given: Mapping[str, Tensor]) -> None:
    """Refuse what is not `{tensor name: tensor}`.

    Raises:
        InvalidInput: names what was given, and the entry that is no tensor.
    """
    if not isinstance(given, Mapping):
        raise InvalidInput(f"the {what} must be {{tensor name: tensor}}, but got {type(given).__name__}")
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise InvalidInput(f"{name!r} in the {what} must be a tensor, but is {type(tensor).__name__}")


def common_names(vectors: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """The sorted names of vectors that fit together: all have the same names, with real tensors of the same shapes.

    Raises:
        InvalidInput: they do not fit; the message has the first names that differ.
    """
    if isinstance(vectors, Mapping) or not vectors:
        raise InvalidInput("give a list with at least one vector, each of them {tensor name: tensor}")
    for vector in vectors:
        if not isinstance(vector, Mapping):
            raise InvalidInput(f"a vector is {{tensor name: tensor}}, but got {type(vector).__name__}")
        for name, tensor in vector.items():
            if not isinstance(tensor, Tensor) or tensor.is_complex():
                kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise InvalidInput(f"tensor {name!r} must be a real tensor, but is {kind}")
    first, names = vectors[0], sorted(vectors[0])
    for other in vectors[1:]:
        if alone := sorted(first.keys() ^ other.keys()):
            raise InvalidInput(f"vectors need the same tensor names; only some have {some(alone, 5)}")
        for name in names:
            if first[name].shape != other[name].shape:
                shapes = f"{tuple(first[name].shape)} and {tuple(other[name].shape)}"
                raise InvalidInput(f"tensor {name!r} must have one shape in all vectors, but has shapes {shapes}")
    return names
