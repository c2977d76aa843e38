"""Dividing a model's tensors into the groups that share merge parameters."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from evomerge.catalogue import TensorCatalogue, TensorEntry
from evomerge.catalogue.expert_parts import grouped_part
from evomerge.errors import InvalidInput
from evomerge.spaces.space import Groups


@dataclass(frozen=True)
class TensorGroup:
    """Tensors merged by one rule.

    Attributes:
        label: "layers0-1.attention"; empty where one group holds everything.
        depth: the label without the part, "layers0-1".
        tensors: names, sorted.
        knots: (label, share) pairs: the group's value of a parameter is the sum of share × the knot's value. One knot
            with share 1 unless the space interpolates over depth.
    """

    label: str
    tensors: tuple[str, ...]
    knots: tuple[tuple[str, float], ...]
    depth: str = ""


def divide(catalogue: TensorCatalogue, groups: Groups) -> tuple[TensorGroup, ...]:
    """The groups of a model, in order of depth, then part. Every floating-point tensor is in exactly one.

    Raises:
        InvalidInput: the space divides by layers and the model has no numbered module list; or see `grouped_part`.
    """
    if not groups.depth.whole and catalogue.depth == 0:
        raise InvalidInput("this space divides by layers, but no tensor name has a layer number; use depth: global")
    members: dict[tuple[int, str, str], list[str]] = defaultdict(list)
    for entry in catalogue.mergeable:
        order, label = _depth_label(entry, catalogue.depth, groups)
        members[order, label, _part_label(entry, groups)].append(entry.name)
    return tuple(
        TensorGroup(
            _join(label, part),
            tuple(sorted(names)),
            _knots(order, label, part, depth=catalogue.depth, groups=groups),
            depth=label,
        )
        for (order, label, part), names in sorted(members.items())
    )


def _depth_label(entry: TensorEntry, depth: int, groups: Groups) -> tuple[int, str]:
    """(sort key, label) of the depth group; for smooth depths the key is the layer itself."""
    if groups.depth.whole:
        return 0, ""
    layer = entry.layer
    if layer is None:
        if groups.outside == "own":
            return depth, "outside"
        layer = 0 if entry.part == "embedding" or groups.outside == "first" else depth - 1
    if groups.depth.blocks is None:
        return layer, f"layer{layer}"
    first = layer - layer % groups.depth.blocks
    last = min(first + groups.depth.blocks, depth) - 1
    return first, f"layers{first}-{last}" if last > first else f"layer{first}"


def _part_label(entry: TensorEntry, groups: Groups) -> str:
    return grouped_part(entry, groups.parts) if groups.parts else ""


def _knots(order: int, label: str, part: str, *, depth: int, groups: Groups) -> tuple[tuple[str, float], ...]:
    points = groups.depth.smooth
    if points is None or label == "outside":
        return ((_join(label, part), 1.0),)
    place = order * (points - 1) / max(depth - 1, 1)
    left = min(int(place), points - 2)
    shares = ((f"point{left}", 1 - (place - left)), (f"point{left + 1}", place - left))
    return tuple((_join(point, part), share) for point, share in shares if share > 0)


def _join(*labels: str) -> str:
    return ".".join(label for label in labels if label)
