"""Layer paths as a search space: the genome of DIS over the sources of a search, decoded to recipes and back."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from optuna.distributions import BaseDistribution

from evomerge.catalogue import TensorCatalogue
from evomerge.catalogue.layer_stack import mlp_outputs, stacked_catalogue
from evomerge.errors import InvalidInput
from evomerge.recipe import ModelRef, PathLayer, Recipe, Rule, copying_rule
from evomerge.spaces.depth import dis_distributions, dis_initial, dis_orders, dis_path
from evomerge.spaces.space import SearchSpace

MOST_ORDERS = 1000  # of the blocks of a position: every trial stores all values of its choices


@dataclass(frozen=True, kw_only=True)
class BoundPaths:
    """The paths through the layers of some sources.

    Tensors outside of layers are those of the path's ends: embeddings of the model of its first layer, the last norm
    and the head of that of its last (as Sakana's and the authors' models have them, arXiv 2403.13187, 2502.04030).

    Attributes:
        base: gives the layers of a position where nothing is selected.
        sources: what is selected from, in the order of the blocks.
        depth: layers of each of them.
        granularity, fix_layers, scale: see `LayerPaths`.
        max_layers: budget of depth.
        first, last: the tensors outside of layers that belong to the first layer of a path, and to the last.
    """

    base: str
    sources: tuple[str, ...]
    depth: int
    granularity: int
    fix_layers: int
    max_layers: int
    scale: bool
    first: tuple[str, ...]
    last: tuple[str, ...]

    def distributions(self) -> dict[str, BaseDistribution]:
        """The genes, position by position."""
        found = dis_distributions(self.sources, self.depth, self.granularity, self.fix_layers)
        return {name: each for name, each in found.items() if self.scale or not _is_scale(name)}

    def starts(self) -> list[dict[str, Any]]:
        """The own stack of each source."""
        found = dis_initial(self.sources, self.depth, self.granularity, self.fix_layers)
        return [
            {name: value for name, value in genome.items() if self.scale or not _is_scale(name)} for genome in found
        ]

    def path(self, params: Mapping[str, Any]) -> tuple[PathLayer, ...]:
        """The layers that the params stand for, however many they are."""
        genome = {name: 1.0 for name in self._all_genes() if _is_scale(name)} | dict(params)
        everything = self.depth * len(self.sources)
        return tuple(
            dis_path(
                genome,
                self.sources,
                self.depth,
                granularity=self.granularity,
                fix_layers=self.fix_layers,
                max_layers=everything,
                base=self.base,
            )
        )

    def recipe(self, params: Mapping[str, Any], base: ModelRef, sources: Sequence[ModelRef], **rest: Any) -> Recipe:
        """The recipe of the params."""
        layers = self.path(params)
        return Recipe(base=base, sources=tuple(sources), rules=tuple(self._rules(layers)), layers=layers, **rest)

    def excess(self, path: Sequence[PathLayer]) -> int:
        """Number of layers by which a path is over the budget; 0 for one that can be scored."""
        return max(0, len(path) - self.max_layers)

    def refusal(self, path: Sequence[PathLayer]) -> str:
        """The reason why a path over the budget is not scored."""
        return f"the path has {len(path)} layers, and max_layers of the space allows {self.max_layers}"

    def share_within_budget(self) -> float:
        """Share of the paths drawn at random that are not over the budget."""
        blocks, positions = len(self.sources) * self.granularity, (self.depth - 2 * self.fix_layers) // self.granularity
        one = {count: math.comb(blocks, count) / 2**blocks for count in range(1, blocks + 1)}
        one[self.granularity] += 1 / 2**blocks  # nothing selected: the base's layers
        shares = {2 * self.fix_layers: 1.0}
        for _ in range(positions):
            longer: dict[int, float] = defaultdict(float)
            for length, share in shares.items():
                for count, probability in one.items():
                    longer[length + count] += share * probability
            shares = longer
        return math.fsum(share for length, share in shares.items() if length <= self.max_layers)

    def params_of(self, recipe: Recipe) -> dict[str, Any] | None:
        """The params of a recipe; None where the space has none for it.

        Raises:
            InvalidInput: a path over the budget.
        """
        path = recipe.layers or self._own_stack(recipe)
        if path is None:
            return None
        if self.excess(path):
            raise InvalidInput(f"{self.refusal(path)}; raise it, or give a shorter path")
        free = path[self.fix_layers : len(path) - self.fix_layers]
        params: dict[str, Any] = self.starts()[0]
        places = {at: tuple(run) for at, run in groupby(free, key=self._position)}
        if set(places) != set(range((self.depth - 2 * self.fix_layers) // self.granularity)):
            return None
        for position, run in places.items():
            genes = self._genes(position, run)
            if genes is None:
                return None
            params.update(genes)
        return params if self.path(params) == path else None

    def _position(self, layer: PathLayer) -> int:
        return (layer.layer - self.fix_layers) // self.granularity

    def _genes(self, position: int, run: Sequence[PathLayer]) -> dict[str, Any] | None:
        """The genes of a position whose layers are these."""
        n, first = len(self.sources), self.fix_layers + position * self.granularity
        names = [(each.source, each.layer) for each in run]
        by_default = [(self.base, first + offset) for offset in range(self.granularity)]
        blocks: list[int] = []
        if names != by_default or self.base in self.sources:
            if not {source for source, _ in names} <= set(self.sources):
                return None
            blocks = [(layer - first) * n + self.sources.index(source) for source, layer in names]
        orders = enumerate(dis_orders(n, self.granularity))
        order = next((at for at, all_ in orders if [block for block in all_ if block in blocks] == blocks), None)
        if order is None:
            return None
        genes: dict[str, Any] = {f"layer_{position}_permutation_selection": str(order)}
        for block in range(n * self.granularity):
            genes[f"layer_{position}_block_{block}_selection"] = "1" if block in blocks else "0"
        if self.scale:
            genes[f"scale_{position}"] = min(max(run[-1].scale, 0.0), 2.0)
        return genes

    def _own_stack(self, recipe: Recipe) -> tuple[PathLayer, ...] | None:
        """The path of a recipe that copies one source."""
        for source in (self.base, *self.sources):
            if recipe.rules == (copying_rule(source, recipe.rules[0].tensors if recipe.rules else ()),):
                return tuple(PathLayer(source, layer, 1.0) for layer in range(self.depth))
        return None

    def _rules(self, path: Sequence[PathLayer]) -> Iterator[Rule]:
        for layer, tensors in ((path[0], self.first), (path[-1], self.last)):
            if tensors and layer.source != self.base:
                yield copying_rule(layer.source, tensors)

    def _all_genes(self) -> list[str]:
        return list(dis_distributions(self.sources, self.depth, self.granularity, self.fix_layers))


def bind_paths(space: SearchSpace, catalogue: TensorCatalogue, base: str, sources: Sequence[str]) -> BoundPaths:
    """Give a space of layer paths its sources.

    Raises:
        InvalidInput: the model has no layers, they cannot be divided as the space says, no path fits the budget, or
            what an MLP adds cannot be scaled.
    """
    wanted = space.layers
    assert wanted is not None  # such spaces only
    where = f"search space {space.name!r}"
    depth = catalogue.depth
    stacked_catalogue(catalogue, range(depth))  # refuses models without layers that can be exchanged
    limit = depth * 5 // 4 if wanted.max_layers is None else wanted.max_layers
    if limit < depth:
        raise InvalidInput(
            f"{where}: max_layers is {limit}, but the sources themselves have {depth}, and a search starts from them"
        )
    orders = len(dis_orders(len(sources), wanted.granularity))
    if orders > MOST_ORDERS:
        raise InvalidInput(
            f"{where}: {len(sources)} sources with {wanted.granularity} layers per position have {orders} orders, and "
            f"at most {MOST_ORDERS} can be searched; use a smaller granularity or fewer sources"
        )
    if wanted.scale:
        for layer in range(depth):
            mlp_outputs(catalogue, layer)
    outside = [entry for entry in catalogue.mergeable if entry.layer is None]
    paths = BoundPaths(
        base=base,
        sources=tuple(sources),
        depth=depth,
        granularity=wanted.granularity,
        fix_layers=wanted.fix_layers,
        max_layers=limit,
        scale=wanted.scale,
        first=tuple(entry.name for entry in outside if entry.part == "embedding"),
        last=tuple(entry.name for entry in outside if entry.part != "embedding"),
    )
    paths.distributions()
    return paths


def _is_scale(gene: str) -> bool:
    return gene.startswith("scale_")
