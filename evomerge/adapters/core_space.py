"""Core space: the task vectors of several adapters of one base in coordinates that they share (arXiv 2509.17786).

The products L_i R_i of n adapters of rank r lie between the columns of all L and the rows of all R. With orthonormal
bases U of the ones and V of the others each is U M_i V', where M_i = U' L_i R_i V has (n r)^2 numbers at most. A method
merges the M_i; the merged tensor is W_0 + U M V'. For weighted sums that is the merge of the tensors themselves; a
method that treats elements one by one, such as TIES, is another one in other coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from evomerge.adapters.adapted_tensors import AdaptedTensors, Change, LowRank
from evomerge.catalogue import TensorCatalogue
from evomerge.errors import InvalidInput
from evomerge.methods import method_info
from evomerge.recipe import Rule
from evomerge.tensors.computed_tensors import ComputedTensors, dtype_of, is_computed
from evomerge.tensors.one_thread import one_thread

Tensors = Mapping[str, Tensor]

# Directions whose singular value is smaller than this times the largest one are less than float32 resolves.
_RANK_TOLERANCE = 1e-9
_SHORTEST_TOLERANCE = 1e-7  # likewise of float32, in which coordinates are merged


@dataclass(frozen=True)
class Core:
    """One tensor in core space.

    Bases and coordinates are made of the adapters' own factors, which are in memory anyway, and of what these factors
    are in the bases. With L = [L_1 | L_2 | ...] = U S W', `left` is S W' = U' L, of which row i has the norm s_i. So U
    is L times `left`' / S^2, and M_i is the product of those columns of `left` and rows of `right` that belong to
    source i. Where s_i is small, U is a large combination, and the coordinates are as small: nothing is lost.

    Attributes:
        products: of the sources that change the tensor.
        left: [k, all ranks]; float32, as `right`.
        right: [all ranks, m], likewise R V of R = [R_1; R_2; ...].
        spans: for each source its ranks; none where it leaves the tensor.
    """

    products: tuple[LowRank, ...]
    left: Tensor
    right: Tensor
    spans: tuple[slice, ...]

    def zeros(self) -> Tensor:
        """Coordinates of what changes nothing, [k, m]."""
        return self.left.new_zeros(len(self.left), self.right.shape[1])

    def coordinates(self, source: int) -> Tensor:
        """M_i in new memory, [k, m]."""
        span = self.spans[source]
        with one_thread():
            return self.left[:, span] @ self.right[span]

    def product(self, merged: Tensor) -> LowRank:
        """U M V' of merged coordinates."""
        before, behind = _inverse(self.left), _inverse(self.right.T).T
        with one_thread():
            between = before @ merged.double() @ behind
            return LowRank(self._left() @ between.float(), self._right(), 1.0)

    def shortest(self, merged: Tensor) -> LowRank:
        """The same with no more columns and rows than the merged coordinates have directions; maybe none."""
        with one_thread():
            rows, values, columns = torch.linalg.svd(merged.double().cpu(), full_matrices=False)
            rank = int((values > _SHORTEST_TOLERANCE * values[0]).sum())
            before = _inverse(self.left.cpu()) @ (rows[:, :rank] * values[:rank])
            behind = columns[:rank] @ _inverse(self.right.T.cpu()).T
            return LowRank(self._left() @ before.to(self.left), behind.to(self.right) @ self._right(), 1.0)

    def _left(self) -> Tensor:
        return torch.cat([product.scale * product.left.float() for product in self.products], dim=1)

    def _right(self) -> Tensor:
        return torch.cat([product.right.float() for product in self.products])


class CoreSpace:
    """The tensors of some sources in core space.

    A tensor that every source changes by a product of low rank, or leaves, is in coordinates. One that no source
    changes is not merged. Any other, such as a module that is saved whole, is merged as it is.

    Attributes:
        names: the tensors that are merged.
        base: by name, zeros for coordinates, and for the others the base's tensors.
        sources: for each source, by name, its coordinates, or its tensor.
    """

    def __init__(self, base: Tensors, sources: Sequence[Tensors], names: Sequence[str]) -> None:
        """
        Args:
            sources: adapters; any other is taken to be the base itself.
            names: tensors of floating-point numbers.
        """
        self._base = base
        self._cores = {name: _core(products) for name, products in _low_rank(sources, names)}
        self.names = tuple(name for name in names if any(name in _changes(source) for source in sources))
        self.base: Tensors = _CoordinatesOf(None, self._cores, base)
        self.sources: tuple[Tensors, ...] = tuple(
            _CoordinatesOf(index, self._cores, source) for index, source in enumerate(sources)
        )

    def product(self, name: str, merged: Tensor) -> LowRank | None:
        """The change of a tensor by its merged coordinates, of the lowest rank; None where it was merged as it is."""
        return self._cores[name].shortest(merged) if name in self._cores else None

    def tensor(self, name: str, merged: Tensor) -> Tensor:
        """The merged tensor in new memory on the base's device."""
        if name not in self._cores:
            return merged
        return Change(product=self._cores[name].product(merged)).apply(self._base[name])


class _CoordinatesOf(ComputedTensors):
    """A source, or the base, in coordinates where it has some; all other tensors as they are."""

    def __init__(self, source: int | None, cores: Mapping[str, Core], tensors: Tensors) -> None:
        self._source = source
        self._cores = cores
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        core = self._cores.get(name)
        if core is None:
            return self._tensors[name]
        return core.zeros() if self._source is None else core.coordinates(self._source)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def is_computed(self, name: str) -> bool:
        return name in self._cores or is_computed(self._tensors, name)

    def dtype_of(self, name: str) -> torch.dtype:
        return torch.float32 if name in self._cores else dtype_of(self._tensors, name)


def core_bytes(sources: Sequence[Tensors], base: TensorCatalogue) -> int:
    """Bytes of a core space of these sources, beside their factors."""
    total = 0
    for name, products in _low_rank(sources, base.names):
        rows, columns = base[name].shape
        rank = sum(product.rank for product in products if product is not None)
        left, right = min(rank, rows), min(rank, columns)
        total += 4 * rank * (left + right)
    return total


def _changes(source: Tensors) -> Mapping[str, Change]:
    return source.changes if isinstance(source, AdaptedTensors) else {}


def _low_rank(sources: Sequence[Tensors], names: Sequence[str]) -> Iterator[tuple[str, list[LowRank | None]]]:
    """The tensors that have coordinates, with the product of each source; None where it leaves the tensor."""
    for name in names:
        changes = [_changes(source).get(name) for source in sources]
        products = [None if change is None else change.low_rank for change in changes]
        if any(products) and all(
            change is None or product is not None for change, product in zip(changes, products, strict=True)
        ):
            yield name, products


def _core(products: Sequence[LowRank | None]) -> Core:
    """Bases of the products of one tensor, where None is zero; at least one is not."""
    given = tuple(product for product in products if product is not None)
    device = given[0].left.device
    ends = list(accumulate(0 if product is None else product.rank for product in products))
    with one_thread():
        left = _in_basis(torch.cat([product.scale * product.left.double().cpu() for product in given], dim=1))
        right = _in_basis(torch.cat([product.right.double().cpu() for product in given]).T).T
    spans = tuple(slice(start, end) for start, end in pairwise([0, *ends]))
    return Core(given, left.to(device), right.contiguous().to(device), spans)


def _in_basis(vectors: Tensor) -> Tensor:
    """The columns of a matrix X = U S W' in the basis U: S W' in float32, without the directions that are zero.

    At least one direction remains.
    """
    _, values, rows = torch.linalg.svd(vectors, full_matrices=False)
    rank = max(1, int((values > _RANK_TOLERANCE * values[0]).sum()))
    in_basis: Tensor = values[:rank, None] * rows[:rank]
    return in_basis.float()


def _inverse(in_basis: Tensor) -> Tensor:
    """C with X C = U for X in the basis U (see `_in_basis`), in float64; zero where X is, as of untrained adapters."""
    wide = in_basis.double()
    squares = wide.square().sum(dim=1)
    return wide.T * squares.reciprocal().nan_to_num(posinf=0.0)


def core_refusal(method: str, options: Mapping[str, Any]) -> str | None:
    """The reason why a method with these options cannot merge in core space, or None."""
    info = method_info(method)
    normalised_sum = info.weighted_sum and options.get("normalize") is True
    if "base" not in info.needs and not normalised_sum:
        return f"{method} merges whole weights; take a method on task vectors, such as task_arithmetic"
    if info.roles:
        return f"{method} takes {info.roles[0]} of the weights as they are; take another method"
    if info.arrival:
        return f"{method} projects whole models, one after the other; take another method"
    return None


def check_core_space(rules: Sequence[Rule], weights: Mapping[str, Tensors], base: str) -> None:
    """Refuse rules whose sources have no core space, or whose method has no meaning there.

    Args:
        weights: source name -> its tensors. Merges that are sources are not among them.
        base: the name of the base, which may be a source.

    Raises:
        InvalidInput: names the source or the method.
    """
    for rule in rules:
        if reason := core_refusal(rule.method, rule.options):
            raise InvalidInput(f"in core space {reason}, or leave `space: core` out")
        for name in rule.sources:
            if name != base and not isinstance(weights.get(name), AdaptedTensors):
                raise no_adapter(name)


def no_adapter(name: str) -> InvalidInput:
    """The error about a source that has no core space."""
    return InvalidInput(
        f"only LoRA adapters of the base have a core space, and the source {name!r} is none; give its adapter, or "
        "leave `space: core` out"
    )
