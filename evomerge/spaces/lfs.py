"""LFS, layer-wise fusion, as its authors' flat genome (arXiv 2502.04030).

Every group of consecutive layers has a method, and for each part of the model the parameters of all methods: those of
the methods that were not chosen have no effect. Parts are the filters (such as "self_attn", "mlp") and then "base", the
tensors that no filter matches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from evomerge.genomes.genes import Genome, groups_of, parts_of, require_count, require_names
from evomerge.genomes.genome_settings import LFS_METHODS
from evomerge.genomes.layer_group import LayerGroup, slerp_pair, slerp_share

__all__ = [
    "lfs_decode",
    "lfs_distributions",
    "lfs_initial",
    "linear_gene",
    "mask_rate_gene",
    "method_gene",
    "slerp_gene",
    "task_weight_gene",
    "ties_lambda_gene",
]


def lfs_distributions(
    sources: Sequence[str], layers: int, granularity: int, filters: Sequence[str]
) -> dict[str, BaseDistribution]:
    """Distribution of every gene: first the methods of all groups, then the parameters group by group, part by part.

    Args:
        sources: names of the models.
        layers: layers of one model.
        granularity: layers per group.
        filters: names of the parts that have parameters apart from the rest.

    Raises:
        InvalidInput: no sources, numbers out of range, names that are not unique, or a granularity that does not divide
            the layers.
    """
    names, groups, parts = _checked(sources, layers, granularity, filters)
    genes: dict[str, BaseDistribution] = {
        method_gene(group): CategoricalDistribution(LFS_METHODS) for group in range(groups)
    }
    for group in range(groups):
        for part in parts:
            for gene in _genes(names, group, part):
                genes[gene] = FloatDistribution(0.0, 0.99 if gene == mask_rate_gene(group, part) else 1.0)
    return genes


def lfs_initial(
    sources: Sequence[str], layers: int, granularity: int, filters: Sequence[str]
) -> list[dict[str, float | str]]:
    """Genomes of the initial design: for each source that source alone. Arguments as of `lfs_distributions`.

    Method linear everywhere with weight 1 for the source and 0 for the others; genes of the other methods are 0, mask
    rates 0.1.
    """
    names, groups, parts = _checked(sources, layers, granularity, filters)
    return [_alone(source, names, groups, parts) for source in names]


def _alone(source: str, names: Sequence[str], groups: int, parts: Sequence[str]) -> dict[str, float | str]:
    genome: dict[str, float | str] = {method_gene(group): "linear" for group in range(groups)}
    for group in range(groups):
        for part in parts:
            genome.update(dict.fromkeys(_genes(names, group, part), 0.0))
            genome[linear_gene(source, group, part)] = 1.0
            genome[mask_rate_gene(group, part)] = 0.1
    return genome


def lfs_decode(
    params: Mapping[str, Any], sources: Sequence[str], layers: int, granularity: int, filters: Sequence[str]
) -> list[LayerGroup]:
    """The groups of layers that a genome stands for, from the first to the last.

    Parameters are `weight` of linear (one number per source as in the genome: the merge normalises), `weight` of
    task_arithmetic (one number), `density` (1 - mask rate) and `lambda` of ties, and `t` of slerp. The sources of slerp
    are the two whose scores have the largest sum over all parts, the larger first, and t is the softmax weight of the
    second by the part's own scores.

    Args:
        params: value of every gene of `lfs_distributions` for the same other arguments; genes of methods that are not
            chosen may be absent.

    Raises:
        InvalidInput: arguments as in `lfs_distributions`, or a gene that is missing, unknown or out of range.
    """
    names, groups, parts = _checked(sources, layers, granularity, filters)
    genome = Genome(params, lfs_distributions(names, layers, granularity, filters))
    return [
        _decode_group(genome, names, group, parts, layers=(group * granularity, (group + 1) * granularity))
        for group in range(groups)
    ]


def _decode_group(
    genome: Genome, names: list[str], group: int, parts: Sequence[str], layers: tuple[int, int]
) -> LayerGroup:
    method = genome.choice(method_gene(group))
    if method == "slerp":
        return _decode_slerp(genome, names, group, parts, layers=layers)
    parameters: dict[str, dict[str, Any]] = {}
    for part in parts:
        match method:
            case "linear":
                parameters[part] = {"weight": [genome.number(linear_gene(name, group, part)) for name in names]}
            case "task_arithmetic":
                parameters[part] = {"weight": genome.number(task_weight_gene(group, part))}
            case _:
                density = 1 - genome.number(mask_rate_gene(group, part))
                parameters[part] = {"density": density, "lambda": genome.number(ties_lambda_gene(group, part))}
    return LayerGroup(layers=layers, method=method, sources=list(names), parameters=parameters)


def _decode_slerp(
    genome: Genome, names: list[str], group: int, parts: Sequence[str], layers: tuple[int, int]
) -> LayerGroup:
    scores = {part: [genome.number(slerp_gene(name, group, part)) for name in names] for part in parts}
    first, second = slerp_pair([sum(values) for values in zip(*scores.values(), strict=True)])
    parameters = {part: {"t": slerp_share(values[first], values[second])} for part, values in scores.items()}
    return LayerGroup(layers=layers, method="slerp", sources=[names[first], names[second]], parameters=parameters)


def _checked(
    sources: Sequence[str], layers: int, granularity: int, filters: Sequence[str]
) -> tuple[list[str], int, list[str]]:
    """Names of the sources, number of groups, parts."""
    names = require_names("sources", sources, minimum=1)
    require_count("layers", layers, 1)
    require_count("granularity", granularity, 1)
    return names, groups_of(layers, granularity), parts_of(filters)


def _genes(names: Sequence[str], group: int, part: str) -> Iterator[str]:
    """Parameter genes of one group and part, in order."""
    yield from (linear_gene(name, group, part) for name in names)
    yield task_weight_gene(group, part)
    yield mask_rate_gene(group, part)
    yield ties_lambda_gene(group, part)
    yield from (slerp_gene(name, group, part) for name in names)


def method_gene(group: int) -> str:
    return f"layer_selection_method_{group}"


def linear_gene(source: str, group: int, part: str) -> str:
    return f"model_{source}_layer_{group}_paramset_{part}_method_linear_param_weights"


def task_weight_gene(group: int, part: str) -> str:
    return f"layer_{group}_paramset_{part}_method_task_arithmetic_param_scaling_coefficient"


def mask_rate_gene(group: int, part: str) -> str:
    return f"layer_{group}_paramset_{part}_method_ties_param_param_value_mask_rate"


def ties_lambda_gene(group: int, part: str) -> str:
    return f"layer_{group}_paramset_{part}_method_ties_param_scaling_coefficient"


def slerp_gene(source: str, group: int, part: str) -> str:
    return f"model_{source}_layer_{group}_paramset_{part}_method_slerp_param_slerp_t"
