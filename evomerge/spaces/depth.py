"""DIS, depth-wise integration, as a genome: a path of layers from several sources (arXiv 2502.04030).

Depth is divided into positions of `granularity` consecutive layers; `fix_layers` layers at both ends belong to no
position and are the first source's. A position has one block per source and layer: for n sources, block b is its layer
b // n of source b % n. A genome selects blocks, the order in which they run, and the output scale of the last one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from evomerge.errors import InvalidInput
from evomerge.genomes.genes import Genome, groups_of, require_count, require_names
from evomerge.recipe import PathLayer

__all__ = ["PathLayer", "dis_distributions", "dis_initial", "dis_orders", "dis_path"]

MAX_ORDERS = 1_000_000


def dis_distributions(
    sources: Sequence[str], layers: int, granularity: int = 1, fix_layers: int = 0
) -> dict[str, BaseDistribution]:
    """Distribution of every gene, position by position.

    Args:
        sources: names of the models, all of the same depth.
        layers: layers of one model.
        granularity: layers per position.
        fix_layers: layers at each end that belong to no position.

    Raises:
        InvalidInput: no sources, numbers out of range, a granularity that does not divide the free layers, or so many
            orders that they cannot be listed.
    """
    names, positions = _checked(sources, layers, granularity, fix_layers)
    orders = tuple(str(index) for index in range(len(dis_orders(len(names), granularity))))
    genes: dict[str, BaseDistribution] = {}
    for position in range(positions):
        genes[_scale(position)] = FloatDistribution(0.0, 2.0)
        genes[_order(position)] = CategoricalDistribution(orders)
        for block in range(len(names) * granularity):
            genes[_block(position, block)] = CategoricalDistribution(("0", "1"))
    return genes


def dis_initial(
    sources: Sequence[str], layers: int, granularity: int = 1, fix_layers: int = 0
) -> list[dict[str, float | str]]:
    """Genomes of the initial design: for each source its own layers, unscaled. Arguments as of `dis_distributions`."""
    names, positions = _checked(sources, layers, granularity, fix_layers)
    return [_own_stack(source, len(names), positions, granularity) for source in range(len(names))]


def _own_stack(source: int, n_sources: int, positions: int, granularity: int) -> dict[str, float | str]:
    genome: dict[str, float | str] = {}
    for position in range(positions):
        genome[_scale(position)] = 1.0
        genome[_order(position)] = "0"
        for block in range(n_sources * granularity):
            genome[_block(position, block)] = "1" if block % n_sources == source else "0"
    return genome


def dis_orders(n: int, granularity: int = 1) -> list[tuple[int, ...]]:
    """All orders of the n · granularity blocks in which the layers of each source keep their order, lexicographically.

    Raises:
        InvalidInput: numbers out of range, or more than a million orders.
    """
    require_count("n", n, 1)
    require_count("granularity", granularity, 1)
    count = math.factorial(n * granularity) // math.factorial(granularity) ** n
    if count > MAX_ORDERS:
        raise InvalidInput(
            f"{n} sources with {granularity} layers per position have {count} orders, and at most {MAX_ORDERS} can be "
            "listed; use a smaller granularity or fewer sources"
        )
    return list(_orders((0,) * n, granularity))


def _orders(used: tuple[int, ...], granularity: int) -> Iterator[tuple[int, ...]]:
    """Orders of the blocks that remain when `used[s]` layers of each source s have been placed."""
    n = len(used)
    # The next block of every source that has one; in this order the results are lexicographic.
    remaining = sorted(used[source] * n + source for source in range(n) if used[source] < granularity)
    if not remaining:
        yield ()
    for block in remaining:
        source = block % n
        placed = (*used[:source], used[source] + 1, *used[source + 1 :])
        for rest in _orders(placed, granularity):
            yield (block, *rest)


def dis_path(
    params: Mapping[str, Any],
    sources: Sequence[str],
    layers: int,
    granularity: int = 1,
    fix_layers: int = 0,
    max_layers: int = 50,
    base: str = "base",
) -> list[PathLayer]:
    """The layers of the model that a genome stands for, from the first to the last.

    Args:
        params: value of every gene of `dis_distributions` for the same `sources`, `layers`, `granularity` and
            `fix_layers`.
        max_layers: budget of depth.
        base: the model that gives the layers of a position where no block is selected. The position's scale is that of
            its last layer there, too.

    Raises:
        InvalidInput: arguments as in `dis_distributions`, a gene that is missing, unknown or out of range, or a path of
            more than `max_layers` layers.
    """
    names, positions = _checked(sources, layers, granularity, fix_layers)
    require_count("max_layers", max_layers, 1)
    genome = Genome(params, dis_distributions(names, layers, granularity, fix_layers))
    orders = dis_orders(len(names), granularity)
    path = [PathLayer(names[0], layer, 1.0) for layer in range(fix_layers)]
    for position in range(positions):
        order = orders[int(genome.choice(_order(position)))]
        chosen = [block for block in order if genome.choice(_block(position, block)) == "1"]
        first = fix_layers + position * granularity
        run = [(names[block % len(names)], first + block // len(names)) for block in chosen]
        run = run or [(base, first + offset) for offset in range(granularity)]
        path += [PathLayer(source, layer, 1.0) for source, layer in run[:-1]]
        path.append(PathLayer(*run[-1], genome.number(_scale(position))))
    path += [PathLayer(names[0], layer, 1.0) for layer in range(layers - fix_layers, layers)]
    if len(path) > max_layers:
        raise InvalidInput(
            f"the path has {len(path)} layers, and at most {max_layers} are allowed; select fewer blocks"
        )
    return path


def _checked(sources: Sequence[str], layers: int, granularity: int, fix_layers: int) -> tuple[list[str], int]:
    """The names of the sources and the number of positions."""
    names = require_names("sources", sources, minimum=1)
    require_count("layers", layers, 1)
    require_count("granularity", granularity, 1)
    require_count("fix_layers", fix_layers, 0)
    free = layers - 2 * fix_layers
    if free < granularity:
        raise InvalidInput(
            f"{fix_layers} fixed layers at both ends of {layers} leave {max(free, 0)}, too few for a position of "
            f"{granularity}; fix fewer"
        )
    return names, groups_of(free, granularity)


def _scale(position: int) -> str:
    return f"scale_{position}"


def _order(position: int) -> str:
    return f"layer_{position}_permutation_selection"


def _block(position: int, block: int) -> str:
    return f"layer_{position}_block_{block}_selection"
