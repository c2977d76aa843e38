"""Units of transformers that may change places: hidden units of MLPs and whole attention heads, found by tensor names.

The residual stream has one order for all layers, so that only units inside a layer can move. A head moves with its
queries, keys, values and output columns, under grouped-query attention the whole group of its keys and values; inside a
head nothing moves, because rotary positions tell its dimensions apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from evomerge.catalogue.attention_heads import AttentionHeads

if TYPE_CHECKING:
    from torch import Tensor

Tensors: TypeAlias = "Mapping[str, Tensor]"


@dataclass(frozen=True, kw_only=True)
class UnitPattern:
    """Modules below one prefix whose rows and columns belong to the hidden units of an MLP.

    Attributes:
        rows: modules whose outputs are the units; a bias of theirs moves along.
        columns: the module whose inputs are the units.
        repeats: outputs per unit of a fused module, one block of all units after the other.
        perhaps_transposed: weights may be stored as [inputs, outputs], like the Conv1D of GPT-2; the bias tells.
    """

    rows: tuple[str, ...]
    columns: str
    repeats: int = 1
    perhaps_transposed: bool = False


MLP_PATTERNS = (
    UnitPattern(rows=("gate_proj", "up_proj"), columns="down_proj"),
    UnitPattern(rows=("gate_up_proj",), columns="down_proj", repeats=2),
    UnitPattern(rows=("up_proj",), columns="down_proj"),
    UnitPattern(rows=("w1", "w3"), columns="w2"),
    UnitPattern(rows=("wi_0", "wi_1"), columns="wo"),
    UnitPattern(rows=("wi",), columns="wo"),
    UnitPattern(rows=("fc1",), columns="fc2"),
    UnitPattern(rows=("c_fc",), columns="c_proj", perhaps_transposed=True),
    UnitPattern(rows=("dense_h_to_4h",), columns="dense_4h_to_h"),
    UnitPattern(rows=("intermediate.dense",), columns="output.dense"),
)

ATTENTION_OUTPUTS = ("o_proj", "out_proj", "dense")
_HEAD_NORMS = ("q_norm", "k_norm")  # of single queries and keys, shared by all heads


@dataclass(frozen=True, kw_only=True)
class UnitMember:
    """A tensor that moves with units: its axis `axis` is laid out as [repeats, units, size]."""

    name: str
    axis: int
    repeats: int = 1
    size: int = 1


@dataclass(frozen=True, kw_only=True)
class UnitGroup:
    """Units that may change places among themselves.

    Attributes:
        prefix: of the names of their module, such as "model.layers.0.mlp.".
        units: number of units.
        incoming: the weights that units are compared by: those that compute them.
        others: whatever else moves along: biases and output weights.
    """

    prefix: str
    units: int
    incoming: tuple[UnitMember, ...]
    others: tuple[UnitMember, ...]

    @property
    def members(self) -> tuple[UnitMember, ...]:
        return self.incoming + self.others


def unit_groups(tensors: Tensors, heads: AttentionHeads | None = None) -> list[UnitGroup]:
    """The groups of a model, in the order of its tensors.

    A module in which a further tensor has as many entries as there are units is left out, since that tensor might have
    to move, too.

    Args:
        heads: for models without norms of single queries and keys, which tell the size of a head. A layer that has
            another number of queries keeps its order. None: heads of such models do not move.
    """
    groups = [*_mlp_groups(tensors), *_attention_groups(tensors, heads)]
    place = {name: index for index, name in enumerate(tensors)}
    sound = (group for group in groups if group.units > 1 and not _has_strangers(group, tensors))
    return sorted(sound, key=lambda group: min(place[member.name] for member in group.members))


def _mlp_groups(tensors: Tensors) -> Iterator[UnitGroup]:
    claimed: set[str] = set()
    for pattern in MLP_PATTERNS:
        ending = f"{pattern.columns}.weight"
        for name in tensors:
            prefix = name.removesuffix(ending)
            if name in claimed or not name.endswith(ending) or (prefix and not prefix.endswith(".")):
                continue
            group = _mlp_group(tensors, prefix, pattern)
            if group is not None:
                claimed.add(name)
                yield group


def _mlp_group(tensors: Tensors, prefix: str, pattern: UnitPattern) -> UnitGroup | None:
    columns = tensors[f"{prefix}{pattern.columns}.weight"]
    weights = [f"{prefix}{module}.weight" for module in pattern.rows]
    if columns.dim() != 2 or any(name not in tensors or tensors[name].dim() != 2 for name in weights):
        return None
    axis = _units_axis(tensors, weights[0]) if pattern.perhaps_transposed else 0
    if axis is None:
        return None
    units = columns.shape[1 - axis]
    if any(tensors[name].shape[axis] != pattern.repeats * units for name in weights):
        return None
    incoming = tuple(UnitMember(name=name, axis=axis, repeats=pattern.repeats) for name in weights)
    biases = [name.removesuffix("weight") + "bias" for name in weights]
    others = [UnitMember(name=name, axis=0, repeats=pattern.repeats) for name in biases if name in tensors]
    others.append(UnitMember(name=f"{prefix}{pattern.columns}.weight", axis=1 - axis))
    return UnitGroup(prefix=prefix, units=units, incoming=incoming, others=tuple(others))


def _units_axis(tensors: Tensors, weight: str) -> int | None:
    """The axis of the outputs, which have a bias; None where both axes could be it."""
    bias = tensors.get(weight.removesuffix("weight") + "bias")
    axes = [axis for axis, length in enumerate(tensors[weight].shape) if bias is not None and bias.numel() == length]
    return axes[0] if len(axes) == 1 else None


def _attention_groups(tensors: Tensors, heads: AttentionHeads | None) -> Iterator[UnitGroup]:
    for name in tensors:
        prefix = name.removesuffix("q_proj.weight")
        if prefix == name:
            continue
        rows = [f"{prefix}{module}.weight" for module in ("q_proj", "k_proj", "v_proj")]
        outputs = [f"{prefix}{module}.weight" for module in ATTENTION_OUTPUTS if f"{prefix}{module}.weight" in tensors]
        normed = any(f"{prefix}{norm}.weight" in tensors for norm in _HEAD_NORMS)
        size = _norm_size(tensors, prefix) if normed else _known_size(heads, queries=tensors[name].shape[0])
        if size is None or len(outputs) != 1 or any(each not in tensors for each in rows):
            continue
        units, rest = divmod(tensors[rows[1]].shape[0], size)
        lengths = [(each, 0, tensors[each].shape[0]) for each in rows]
        biases = [each.removesuffix("weight") + "bias" for each in rows]
        extra = [(each, 0, tensors[each].shape[0]) for each in biases if each in tensors]
        extra.append((outputs[0], 1, tensors[outputs[0]].shape[1]))
        if rest or not units or any(length % units for _, _, length in lengths + extra):
            continue
        members = [
            tuple(UnitMember(name=each, axis=axis, size=length // units) for each, axis, length in listed)
            for listed in (lengths, extra)
        ]
        group = UnitGroup(prefix=prefix, units=units, incoming=members[0], others=members[1])
        if not _tells_heads_apart(group, tensors):
            yield group


def _tells_heads_apart(group: UnitGroup, tensors: Tensors) -> bool:
    """Whether attention has a tensor that may belong to single heads: sinks, scales, positions of an unknown kind."""
    known = {member.name for member in group.members}
    shared = {f"{group.prefix}{norm}.weight" for norm in _HEAD_NORMS}
    beside = (name for name in tensors if name.startswith(group.prefix) and name not in known | shared)
    return any(not _stays(name, known) for name in beside)


def _known_size(heads: AttentionHeads | None, *, queries: int) -> int | None:
    """Dimensions of a head by the config, where a layer has as many queries as that says."""
    return heads.size if heads is not None and heads.count * heads.size == queries else None


def _norm_size(tensors: Tensors, prefix: str) -> int | None:
    """Dimensions of a head where queries and keys are normalised head by head, by weights that all heads share."""
    norms = [tensors.get(f"{prefix}{module}.weight") for module in _HEAD_NORMS]
    sizes = {norm.numel() for norm in norms if norm is not None}
    return sizes.pop() if len(sizes) == 1 and None not in norms else None


def _has_strangers(group: UnitGroup, tensors: Tensors) -> bool:
    """Whether a tensor of the module that is not known to move has an axis as long as one that does."""
    known = {member.name for member in group.members}
    lengths = {tensors[member.name].shape[member.axis] for member in group.members} | {group.units}
    beside = (name for name in tensors if name.startswith(group.prefix) and name not in known)
    return any(lengths & set(tensors[name].shape) for name in beside if not _stays(name, known))


def _stays(name: str, known: set[str]) -> bool:
    """Whether a tensor is a bias of outputs, which are in the residual stream, or of positions inside a head."""
    is_bias = name.endswith("bias") and name.removesuffix("bias") + "weight" in known
    return is_bias or name.endswith("inv_freq")
