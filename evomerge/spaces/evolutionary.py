"""The genome of mergekit-evolve: a flat vector over layer groups, sources, parts and parameters (arXiv 2403.13187).

For import of other searches and comparison with them. It folds and clamps its genes, which the spaces of this package
never do. Parts are the filters and then "base", the tensors that no filter matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from evomerge.errors import InvalidInput, unknown_name
from evomerge.genomes.genes import groups_of, parts_of, require_count, require_names
from evomerge.genomes.genome_settings import EVOLUTIONARY_PARAMETERS
from evomerge.genomes.layer_group import LayerGroup, slerp_pair, slerp_share

__all__ = ["evo_decode", "evo_initial", "evo_shape"]

Array = np.ndarray[Any, np.dtype[np.float64]]


def evo_shape(
    method: str, sources: Sequence[str], layers: int, layer_granularity: int = 0, filters: Sequence[str] = ()
) -> tuple[int, int, int, int]:
    """The genome's shape (groups, sources, parts, parameters).

    Args:
        method: linear, task_arithmetic, ties, dare_ties or slerp.
        sources: names of the models.
        layers: layers of one model.
        layer_granularity: layers per group; 0 for one group.
        filters: names of the parts that have parameters apart from the rest; slerp has none.

    Raises:
        InvalidInput: unknown method, no sources (slerp: fewer than two, or filters), names that are not unique, numbers
            out of range, or a granularity that does not divide the layers.
    """
    if method not in EVOLUTIONARY_PARAMETERS:
        raise unknown_name("method of the evolutionary genome", str(method), EVOLUTIONARY_PARAMETERS)
    names = require_names("sources", sources, minimum=2 if method == "slerp" else 1)
    require_count("layers", layers, 1)
    require_count("layer_granularity", layer_granularity, 0)
    parts = parts_of(filters)
    if method == "slerp" and len(parts) > 1:
        raise InvalidInput(f"slerp has one score per source and group, and no filters, but got {list(filters)!r}")
    groups = groups_of(layers, layer_granularity) if layer_granularity else 1
    return groups, len(names), len(parts), len(EVOLUTIONARY_PARAMETERS[method])


def evo_initial(
    method: str, sources: Sequence[str], layers: int, layer_granularity: int = 0, filters: Sequence[str] = ()
) -> list[float]:
    """The first genome, in C order of the shape: weights (scores) 1 / n, densities 1. Arguments as of `evo_shape`."""
    shape = evo_shape(method, sources, layers, layer_granularity=layer_granularity, filters=filters)
    genome = np.ones(shape)
    genome[..., 0] = 1 / len(sources)
    return [float(value) for value in genome.reshape(-1)]


def evo_decode(
    x: Sequence[float],
    method: str,
    sources: Sequence[str],
    layers: int,
    layer_granularity: int = 0,
    filters: Sequence[str] = (),
    allow_negative_weights: bool = False,
    smooth: bool = False,
) -> list[LayerGroup]:
    """The groups of layers that a genome stands for, from the first to the last.

    A weight is |x|, or x with `allow_negative_weights`; a density is |x|, at most 1. The sources of slerp are the two
    with the highest scores, the higher first, and t is the softmax weight of the second.

    Args:
        x: the genome, in C order of `evo_shape`; other arguments as there.
        smooth: one group of all layers whose values run over depth: instead of a number each source has the list of its
            control points, one per group of the shape.

    Raises:
        InvalidInput: arguments as in `evo_shape`, a genome of another length or with values that are not finite
            numbers, or slerp with `smooth`.
    """
    shape = evo_shape(method, sources, layers, layer_granularity=layer_granularity, filters=filters)
    genome = _checked(x, shape)
    names, spans = list(sources), _spans(shape, layers)
    if method == "slerp":
        if smooth:
            raise InvalidInput(
                "slerp takes its pair of sources per group, which cannot run over depth; leave smooth off"
            )
        return [_slerp_group(scores, names, span) for scores, span in zip(genome, spans, strict=True)]
    genome[..., 1:] = np.minimum(np.abs(genome[..., 1:]), 1.0)
    if not allow_negative_weights:
        genome[..., 0] = np.abs(genome[..., 0])
    parts = parts_of(filters)
    if smooth:
        # (sources, groups) for each part and parameter
        curves = np.moveaxis(genome, 0, -1)
        return [_group(curves, method, names, parts=parts, span=(0, layers))]
    return [_group(values, method, names, parts=parts, span=span) for values, span in zip(genome, spans, strict=True)]


def _group(
    values: Array,
    method: str,
    names: list[str],
    parts: list[str],
    span: tuple[int, int],
) -> LayerGroup:
    """The group of values of shape (sources, parts, parameters, …)."""
    parameters = {
        part: {name: values[:, place, index].tolist() for index, name in enumerate(EVOLUTIONARY_PARAMETERS[method])}
        for place, part in enumerate(parts)
    }
    return LayerGroup(layers=span, method=method, sources=list(names), parameters=parameters)


def _slerp_group(values: Array, names: list[str], span: tuple[int, int]) -> LayerGroup:
    """The group of scores of shape (sources, 1, 1)."""
    scores = [float(score) for score in values[:, 0, 0]]
    first, second = slerp_pair(scores)
    parameters = {"base": {"t": slerp_share(scores[first], scores[second])}}
    return LayerGroup(layers=span, method="slerp", sources=[names[first], names[second]], parameters=parameters)


def _spans(shape: tuple[int, int, int, int], layers: int) -> list[tuple[int, int]]:
    size = layers // shape[0]
    return [(group * size, (group + 1) * size) for group in range(shape[0])]


def _checked(x: Sequence[float], shape: tuple[int, int, int, int]) -> Array:
    values = list(x) if isinstance(x, Sequence | np.ndarray) else [x]
    if not all(isinstance(value, Real) and not isinstance(value, bool) for value in values):
        raise InvalidInput("the genome is a flat list of numbers; flatten it in C order of its shape")
    genome = np.array(values, dtype=np.float64)
    if genome.size != np.prod(shape):
        raise InvalidInput(f"the genome has {genome.size} values, but {int(np.prod(shape))} fit the shape {shape}")
    if not np.isfinite(genome).all():
        raise InvalidInput("the genome has values that are not finite; give finite numbers")
    return genome.reshape(shape)
