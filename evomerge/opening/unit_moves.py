"""Number of units of the first source that OT fusion will move, computed before a search."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from evomerge.alignment.alignment import OtSettings
from evomerge.catalogue import part_of
from evomerge.catalogue.attention_heads import attention_heads
from evomerge.catalogue.unit_patterns import unit_groups
from evomerge.merging.ot_fusion import align
from evomerge.methods import method_info, resolve_options
from evomerge.opening.inputs import Inputs

METHOD = "ot_fusion"

# An assignment takes the cube of the units; so many of these are about a minute's work.
_MOST_WORK = 10**12

Moves = dict[str, tuple[int, int]]
"""Part of the model -> number of units that change places, and of all that could."""


def unit_moves(inputs: Inputs) -> Moves | None:
    """The moves of the alignment that a worker will make once; None for a search without one, or with one that takes
    too long to be made beforehand.

    Raises:
        InvalidInput: the sources cannot be aligned.
    """
    chosen = inputs.space.space.methods.get(METHOD)
    reg = None if chosen is None else chosen.parameters.get("reg", _default_reg())
    if chosen is None or not isinstance(reg, float):
        return None
    options: dict[str, Any] = resolve_options(METHOD, chosen.options, semantics=inputs.space.space.semantics)
    names = tuple(entry.name for entry in inputs.catalogue.mergeable)
    opened = {source.ref.name: source for source in (inputs.base, *inputs.experts)}
    first, second = ({name: opened[ref.name].tensors[name] for name in names} for ref in inputs.space.sources)
    heads = attention_heads(inputs.base.settings)
    if sum(group.units**3 for group in unit_groups(first, heads)) > _MOST_WORK:
        return None
    alignment = align(first, second, OtSettings(**options, reg=reg), None, heads)
    moves: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for layer, units in alignment.units.items():
        part = part_of(f"{layer.removesuffix('.weight')}.weight")
        moved, every = moves[part]
        moves[part] = moved + alignment.moved[layer], every + units
    return dict(moves)


def moves_sentence(moves: Moves) -> str:
    """One line for a person."""
    counted = ", ".join(f"{part} {moved:,} of {units:,}" for part, (moved, units) in sorted(moves.items()))
    identity = "" if any(moved for moved, _ in moves.values()) else ": identity"
    return f"{METHOD} moves units: {counted}{identity}"


def _default_reg() -> float:
    return next(each.default for each in method_info(METHOD).parameters if each.name == "reg")
