"""OT fusion: the units of one model are aligned to those of another before the two are averaged. arXiv 1910.05653.

    theta = (1 - t) A' + t B,  A' the first source in the order of the second's units

A model with attention is aligned inside its layers, see `unit_alignment`; any other one is a chain of fully connected
layers, see `chain_alignment`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evomerge.alignment.alignment import Alignment, OtSettings
from evomerge.alignment.chain_alignment import align_chain
from evomerge.alignment.unit_alignment import align_units
from evomerge.catalogue import part_of
from evomerge.catalogue.attention_heads import AttentionHeads
from evomerge.errors import InvalidInput
from evomerge.tensors.one_thread import one_thread
from evomerge.tensors.rule_tensors import CPU_PIECE, DEVICE_PIECE, RuleTensors

Tensors = Mapping[str, Tensor]


def merge_ot_fusion(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """theta = (1 - t) A' + t B with A' aligned to B: OT fusion, arXiv 1910.05653; see the head of this file.

    The alignment is of the whole model and depends on neither t nor the rule: it is made once for a pair of sources.

    Yields:
        (name, merged tensor) in the shape of the second source, each once, in the order of the rule's names.

    Raises:
        InvalidInput: models that cannot be aligned, or activations that the mode lacks or has no use for.
        MergeError: a distance between units is not finite.
    """
    aligned, t = _alignment(tensors).tensors, tensors.shared("t")
    for name in tensors.names:
        yield name, interpolate(aligned[name], tensors.sources[1][name], t, tensors.dtype([name]))


def align(
    source: Tensors,
    target: Tensors,
    settings: OtSettings,
    activations: Sequence[Tensors] | None = None,
    heads: AttentionHeads | None = None,
) -> Alignment:
    """The source in the order of the target's units; by unit patterns where it has attention, otherwise as a chain.

    Raises:
        InvalidInput, MergeError: see `align_units` and `align_chain`.
    """
    with one_thread():
        if any(part_of(name) == "attention" for name in source):
            return align_units(source, target, settings, activations, heads)
        return align_chain(source, target, settings, activations)


def interpolate(aligned: Tensor, target: Tensor, t: float, dtype: torch.dtype) -> Tensor:
    """(1 - t) A' + t B in float64, rounded once to `dtype`, on the device and in the shape of B."""
    result = torch.empty(target.shape, dtype=dtype, device=target.device)
    flat, ours, theirs = result.view(-1), aligned.detach().reshape(-1), target.detach().reshape(-1)
    size = CPU_PIECE if target.device.type == "cpu" else DEVICE_PIECE
    for start in range(0, flat.numel(), size):
        piece = slice(start, start + size)
        flat[piece] = (1 - t) * ours[piece].to(target.device).double() + t * theirs[piece].double()
    return result


def _alignment(tensors: RuleTensors) -> Alignment:
    options: dict[str, Any] = dict(tensors.options)
    settings = OtSettings(**options, reg=tensors.shared("reg"))
    if settings.mode == "wts" and tensors.statistics is not None:
        raise InvalidInput("ot_fusion uses statistics in mode acts alone; leave them out, or choose that mode")
    question = settings, tensors.whole_model
    kept: tuple[object, Alignment] | None = tensors.cache.get(("ot_fusion", "alignment"))
    if kept is not None and kept[0] == question:
        return kept[1]
    names = {*tensors.whole_model, *tensors.names}
    # In the order of the model's own dictionary, which is the order of a chain of layers.
    first, second = ({name: source[name] for name in source if name in names} for source in tensors.sources)
    alignment = align(first, second, settings, tensors.statistics, tensors.attention_heads)
    if settings.mode == "wts":
        tensors.cache["ot_fusion", "alignment"] = question, alignment
    return alignment
