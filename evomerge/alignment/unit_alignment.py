"""Alignment of a transformer to another one of the same shape: hidden units of MLPs and whole attention heads.

Within a group of units T is the transport plan by the weights that compute the units, with aligned inputs and outputs:
those are the residual stream, which stays in its order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evomerge.alignment.activations import paired_activations
from evomerge.alignment.alignment import Alignment, OtSettings, unit_map
from evomerge.alignment.transport import UnitMap
from evomerge.catalogue.attention_heads import AttentionHeads
from evomerge.catalogue.unit_patterns import UnitGroup, UnitMember, unit_groups
from evomerge.errors import InvalidInput

Tensors = Mapping[str, Tensor]


def align_units(
    source: Tensors,
    target: Tensors,
    settings: OtSettings,
    activations: Sequence[Tensors] | None = None,
    heads: AttentionHeads | None = None,
) -> Alignment:
    """Align the units that may move by the shipped patterns; all other tensors stay as they are.

    Args:
        activations: for mode acts, of source and target: weight name -> [samples, outputs], for the same samples and
            for all weights that compute units.
        heads: attention heads by the config; see `unit_groups`.

    Raises:
        InvalidInput: models of different shapes, none of whose units is known to move, or activations that are missing
            or do not fit.
        MergeError: a distance between units is not finite.
    """
    if misfits := sorted(n for n in source.keys() | target.keys() if _shape(source, n) != _shape(target, n)):
        raise InvalidInput(f"transformers of different shapes cannot be aligned; {misfits[0]!r} differs")
    groups = unit_groups(source, heads)
    if not groups:
        raise InvalidInput(
            "ot_fusion knows no units of this model that may move: it has attention, so that it is no chain of layers, "
            "and none of its modules has the names of an MLP that is known"
        )
    aligned, moved = dict(source), {}
    for group in groups:
        units = unit_map(*_vectors(group, source, target, settings, activations), settings)
        for member in group.members:
            aligned[member.name] = _moved(source[member.name], member, group.units, units)
        moved[group.prefix.removesuffix(".")] = units.moved
    return Alignment(aligned, moved, {group.prefix.removesuffix("."): group.units for group in groups})


def _shape(model: Tensors, name: str) -> tuple[int, ...] | None:
    return tuple(model[name].shape) if name in model else None


def _vectors(
    group: UnitGroup,
    source: Tensors,
    target: Tensors,
    settings: OtSettings,
    activations: Sequence[Tensors] | None,
) -> tuple[Tensor, Tensor]:
    """A vector for each unit in both models: [units, …]."""
    pairs = []
    for member in group.incoming:
        if settings.mode == "acts":
            width = source[member.name].shape[member.axis]
            rows = UnitMember(name=member.name, axis=0, repeats=member.repeats, size=member.size)
            pair = paired_activations(member.name, activations, (width, width))
            pairs.append(tuple(by_unit(values, rows, group.units) for values in pair))
        else:
            pairs.append(tuple(by_unit(model[member.name], member, group.units) for model in (source, target)))
    first, second = (torch.cat([part.double().cpu() for part in parts], 1) for parts in zip(*pairs, strict=True))
    return first, second


def by_unit(tensor: Tensor, member: UnitMember, units: int) -> Tensor:
    """The tensor with a row for each unit: [units, repeats · size · rest]."""
    first = tensor.movedim(member.axis, 0)
    return first.reshape(member.repeats, units, member.size, -1).transpose(0, 1).reshape(units, -1)


def _moved(tensor: Tensor, member: UnitMember, units: int, mapped: UnitMap) -> Tensor:
    """The tensor with its units mapped, in its own layout."""
    lengths = list(tensor.movedim(member.axis, 0).shape)
    rows = mapped.rows(by_unit(tensor, member, units).cpu())
    back = rows.reshape(units, member.repeats, member.size, -1).transpose(0, 1).reshape(lengths)
    return back.movedim(0, member.axis).contiguous()
