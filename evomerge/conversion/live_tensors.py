"""The tensors of a live model in the form and under the names in which they are stored, and numbers beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor
from torch.nn import Module

from evomerge.conversion.live_places import LivePlace

Form = Callable[[Tensor], Tensor]


class LiveTensors(Mapping[str, Tensor]):
    """Tensors of a live model by name, in their stored form: writing to one of them changes the model.

    Args:
        live_names: name -> name in the model, of tensors that are kept as they are stored.
        places: of those that are kept in another form. Live tensors that are stored as one get a common memory.
    """

    def __init__(self, model: Module, live_names: Mapping[str, str], places: Mapping[str, LivePlace]) -> None:
        self._live: dict[str, Tensor] = model.state_dict(keep_vars=True)
        self._places = places
        tensors = {name: self._live[place] for name, place in live_names.items()}
        tensors |= {name: place.tensor(self._live) for name, place in places.items()}
        self._tensors: dict[str, Tensor] = dict(sorted(tensors.items()))

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def holders(self, name: str) -> list[tuple[Tensor, Form]]:
        """The tensors of the model that have the numbers of a stored one, and the form that its own numbers have in it.

        The forms of several tensors of the model, each with zeros where the others are, add up to all.
        """
        place = self._places.get(name)
        if place is None:
            return [(self[name], _as_it_is)]
        return [(self._live[live], partial(place.stored_form, live)) for live in place.live_names]


@dataclass(frozen=True)
class Leaf:
    """A tensor of a model, and the stored tensors that have numbers in it.

    Attributes:
        forms: name -> puts numbers of the tensor, such as its gradient, into the stored form, see `LiveTensors`.
    """

    tensor: Tensor
    forms: dict[str, Form] = field(default_factory=dict)


def leaves(live: Mapping[str, Tensor], names: Iterable[str]) -> list[Leaf]:
    """The tensors of a model that some stored tensors have their numbers in, each once.

    Args:
        live: `LiveTensors`, or another mapping, whose tensors are then those of the model.
    """
    found: dict[int, Leaf] = {}
    for name in names:
        holders = live.holders(name) if isinstance(live, LiveTensors) else [(live[name], _as_it_is)]
        for tensor, form in holders:
            found.setdefault(id(tensor), Leaf(tensor)).forms[name] = form
    return list(found.values())


def _as_it_is(numbers: Tensor) -> Tensor:
    return numbers
