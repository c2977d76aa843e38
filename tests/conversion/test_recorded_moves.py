"""Places that a recorded operation gives, against the operation itself on numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from transformers.core_model_loading import ErnieFuseAndSplitTextVisionExperts, Interleave

from evomerge.conversion.recorded_moves import MoveRecord, NoView

Tensors = dict[str, Tensor]
Move = Callable[[Tensors], Tensors]


def matrices(**shapes: tuple[int, ...]) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def ernie(stored: Tensors) -> Tensors:
    lists = {letter: [tensor for name, tensor in stored.items() if name[0] == letter] for letter in "gu"}
    found: Tensors = ErnieFuseAndSplitTextVisionExperts().convert(lists, ["g", "u"], ["text", "vision"], config=None)
    return dict(found)


def joined(function: Callable[..., Tensor], *dim: int) -> Move:
    return lambda given: {"all": function(list(given.values()), *dim)}


def changed(function: Callable[[Tensor], Tensor]) -> Move:
    return lambda given: {"all": function(given["a"])}


def parted(function: Callable[[Tensor], Sequence[Tensor]]) -> Move:
    return lambda given: {str(number): part for number, part in enumerate(function(given["a"]))}


PAIRS = dict.fromkeys(("g0", "g1", "u0", "u1"), (3, 2))
MOVES: dict[str, tuple[Move, Tensors]] = {
    "a stack": (joined(torch.stack), matrices(a=(3, 2), b=(3, 2))),
    "a stack along the columns": (joined(torch.stack, 2), matrices(a=(3, 2), b=(3, 2))),
    "rows one after the other": (joined(torch.cat), matrices(a=(3, 2), b=(1, 2))),
    "columns beside each other": (joined(torch.cat, -1), matrices(a=(3, 2), b=(3, 1))),
    "a transposed matrix": (changed(lambda a: a.T.contiguous()), matrices(a=(3, 2))),
    "dimensions in another order": (changed(lambda a: a.permute(2, 0, -2).contiguous()), matrices(a=(2, 3, 4))),
    "another shape": (changed(lambda a: a.reshape(3, 2, 4).flatten(1)), matrices(a=(6, 4))),
    "one without its dimension of size 1": (changed(lambda a: a.squeeze(1)), matrices(a=(3, 1, 2))),
    "rows that are split": (parted(lambda a: a.chunk(3)), matrices(a=(6, 4))),
    "parts of other sizes": (parted(lambda a: a.split([1, 5])), matrices(a=(6, 4))),
    "a stack that is taken apart": (parted(lambda a: a.unbind()), matrices(a=(2, 3))),
    "pairs of experts in two stacks": (ernie, matrices(**PAIRS)),
}


@pytest.mark.parametrize("name", MOVES)
def test_numbers_written_to_the_places_are_where_the_operation_moves_them(name: str) -> None:
    move, stored = MOVES[name]
    empty = {each: tensor.to("meta") for each, tensor in stored.items()}
    with MoveRecord() as record:
        made = move(dict(empty))
    places = record.places(empty, made)
    live = {each: torch.zeros(tensor.shape) for each, tensor in made.items()}
    tensors = {each: place.tensor(live) for each, place in places.items()}
    assert {each: tensor.shape for each, tensor in tensors.items()} == {each: x.shape for each, x in stored.items()}
    for each, tensor in tensors.items():
        tensor.copy_(stored[each])
    expected = move(dict(stored))
    assert live.keys() == expected.keys()
    assert all(torch.equal(live[each], tensor) for each, tensor in expected.items())
    assert all(tensor.is_contiguous() for tensor in live.values())


REFUSED: dict[str, tuple[Move, str]] = {
    "columns that are split": (parted(lambda a: a.chunk(2, 1)), "reorders parts"),
    "interleaved rows": (lambda given: Interleave(dim=0).convert(given, [], ["all"]), "reorders numbers inside"),
    "arithmetic": (changed(lambda a: a + 1), "or computes with them"),
    "numbers left out": (changed(lambda a: a[1:]), "left out"),
    "one part twice": (parted(lambda a: (a[:3], a[:3])), "come up twice"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_operation_after_which_nothing_is_a_view_says_so(name: str) -> None:
    move, reason = REFUSED[name]
    empty = {"a": torch.empty(6, 4, device="meta")}
    with MoveRecord() as record:
        made = move(dict(empty))
    with pytest.raises(NoView, match=reason):
        record.places(empty, made)
