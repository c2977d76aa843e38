"""Places of a checkpoint's tensors in a model class, by the map with which transformers loads them.

This is the only file that touches transformers' conversion machinery (`conversion_mapping`, `core_model_loading`),
which is not part of its documented surface; tests/checkpoints/test_architecture.py and tests/conversion hold what is
relied on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from transformers import conversion_mapping
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from evomerge.conversion.live_places import Hosted, LivePlace
from evomerge.conversion.recorded_moves import MoveRecord, NoView
from evomerge.messages import first_line, some

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Header = Mapping[str, tuple[tuple[int, ...], str]]

# Family of mixtures of experts in transformers' map -> modules of its earlier model classes that are parts of fused
# experts now. PEFT takes a target that ends with such a name for these, also where it is another module (0.21,
# transformers_weight_conversion.py).
_FUSED_MODULES: Mapping[str, frozenset[str]] = {
    "mixtral": frozenset({"gate", "w1", "w2", "w3"}),
    "qwen2_moe": frozenset({"gate", "gate_proj", "up_proj", "down_proj"}),
}


@dataclass(frozen=True, kw_only=True)
class StoredPlaces:
    """Places of the stored tensors that a model class loads.

    Attributes:
        whole: stored name -> live name, for tensors that are kept as they are stored.
        places: stored name -> place, for those that are kept in another form.
        unplaced: stored name -> the reason why it has no place that can be written to, though the class loads it.
        filled: live names that get all of their numbers.
        unfit: sentences on live tensors that the stored ones do not make.
    """

    whole: dict[str, str] = field(default_factory=dict)
    places: dict[str, LivePlace] = field(default_factory=dict)
    unplaced: dict[str, str] = field(default_factory=dict)
    filled: set[str] = field(default_factory=set)
    unfit: list[str] = field(default_factory=list)

    @property
    def loaded(self) -> set[str]:
        """The stored names that the model class loads."""
        return {*self.whole, *self.places, *self.unplaced}


@dataclass(frozen=True)
class _Group:
    """Stored tensors that one conversion makes one live tensor of, or several.

    Attributes:
        converter: of transformers, for this group alone.
        patterns: stored name -> the pattern of the converter that it matches, in the order of loading.
    """

    converter: WeightConverter
    patterns: dict[str, str] = field(default_factory=dict)


def fused_modules(model: PreTrainedModel) -> frozenset[str]:
    """Last parts of the names of modules for which PEFT adapts the fused experts of a model instead."""
    kind = str(model.config.model_type)
    families = getattr(conversion_mapping, "_MODEL_TO_CONVERSION_PATTERN", {})
    return _FUSED_MODULES.get("mixtral" if kind == "mixtral" else families.get(kind, ""), frozenset())


def find_places(model: PreTrainedModel, live: Mapping[str, torch.Tensor], header: Header) -> StoredPlaces:
    """The places of the stored tensors of a header in a model on the meta device, whose tensors are `live`."""
    found = StoredPlaces()
    groups: dict[str, _Group] = {}
    for name, place, pattern, converter in _renamed(model, live, header):
        if converter is None or pattern is None:
            found.whole[name] = place
            found.filled.add(place)
        else:
            groups.setdefault(place, _Group(deepcopy(converter))).patterns[name] = pattern
    for place, group in groups.items():
        _convert(place, group, model=model, live=live, header=header, found=found)
    return found


def _renamed(
    model: PreTrainedModel, live: Mapping[str, torch.Tensor], header: Header
) -> Iterable[tuple[str, str, str | None, WeightConverter | None]]:
    """(stored name, live name, pattern, converter) in the order of loading; the last two None without conversion."""
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    known, prefix = dict(live), model.base_model_prefix
    for name in sorted(header, key=dot_natural_key):
        place, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if place not in live and name in live:  # a name that looks like one that has to be changed
            place, pattern = rename_source_key(name, [], [], prefix, known)
        if place in live:
            yield name, place, pattern, None if pattern is None else by_pattern[pattern]


def _convert(
    place: str,
    group: _Group,
    *,
    model: PreTrainedModel,
    live: Mapping[str, torch.Tensor],
    header: Header,
    found: StoredPlaces,
) -> None:
    """Convert a group without numbers, and take the places from what that does."""
    stored = {name: torch.empty(header[name][0], device="meta") for name in group.patterns}
    for name, pattern in group.patterns.items():
        group.converter.add_tensor(place, name, pattern, stored[name])
    described = f"{place} of {some(list(stored))}"
    try:
        with MoveRecord() as record:
            converted = group.converter.convert(place, model=model, config=model.config)
    except Exception as error:  # whatever an operation raises on tensors that do not fit each other
        found.unplaced.update(dict.fromkeys(stored, "it cannot be converted"))
        found.unfit.append(f"{described}: {first_line(error)}")
        return
    made = {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in converted.items()}
    made = {name: tensor for name, tensor in made.items() if name in live}
    if wrong := [name for name, tensor in made.items() if tensor.shape != live[name].shape]:
        found.unfit.append(
            f"{described} would be {list(made[wrong[0]].shape)}, config says {list(live[wrong[0]].shape)}"
        )
    found.filled.update(made)
    try:
        places = record.places(stored, made)
    except NoView as reason:
        found.unplaced.update(dict.fromkeys(stored, str(reason)))
        return
    for name, each in places.items():
        if isinstance(each, Hosted) and each.view.covers(live[each.live].shape):
            found.whole[name] = each.live
        else:
            found.places[name] = each
