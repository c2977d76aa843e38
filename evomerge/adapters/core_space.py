"""Core space: the task vectors of several adapters of one base in coordinates that they share (arXiv 2509.17786).

The products L_i R_i of n adapters of rank r lie between the columns of all L and the rows of all R. With orthonormal
bases U of the ones and V of the others each is U M_i V', where M_i = U' L_i R_i V has (n r)^2 numbers at most. A method
merges the M_i; the merged tensor is W_0 + U M V'. For weighted sums that is the merge of the tensors themselves; a
method that treats elements one by one, such as TIES, is another one in other coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evomerge.adapters.adapted_tensors import AdaptedTensors, Change, LowRank
from evomerge.catalogue import TensorCatalogue
from evomerge.errors import InvalidInput
from evomerge.methods import method_info
from evomerge.recipe import Rule
from evomerge.tensors.one_thread import one_thread

Tensors = Mapping[str, Tensor]

# Directions whose singular value is smaller than this times the largest one are less than float32 resolves.
_RANK_TOLERANCE = 1e-9
_SHORTEST_TOLERANCE = 1e-7  # likewise of float32, in which coordinates are merged


@dataclass(frozen=True)
class Core:
    """One tensor in core space.

    The bases U and V are held as combinations of the adapters' own factors, which are in memory anyway. Directions in
    which these are small are large in the combinations; the coordinates are as small there, so that nothing is lost.

    Attributes:
        products: of the sources that change the tensor.
        left: [all ranks, k], with U = [L_1 | L_2 | ...] left; float32, as the others.
        right: [m, all ranks], with V' = right [R_1; R_2; ...].
        coordinates: for each source M_i, [k, m].
    """

    products: tuple[LowRank, ...]
    left: Tensor
    right: Tensor
    coordinates: tuple[Tensor, ...]

    def product(self, merged: Tensor) -> LowRank:
        """U M V' of merged coordinates."""
        with one_thread():
            between = self.left.double() @ merged.double() @ self.right.double()
            return LowRank(self._left() @ between.float(), self._right(), 1.0)

    def shortest(self, merged: Tensor) -> LowRank:
        """The same with no more columns and rows than the merged coordinates have directions; maybe none."""
        with one_thread():
            rows, values, columns = torch.linalg.svd(merged.double().cpu(), full_matrices=False)
            rank = int((values > _SHORTEST_TOLERANCE * values[0]).sum())
            before = self.left.double().cpu() @ (rows[:, :rank] * values[:rank])
            behind = columns[:rank] @ self.right.double().cpu()
            return LowRank(self._left() @ before.to(self.left), behind.to(self.right) @ self._right(), 1.0)

    def _left(self) -> Tensor:
        return torch.cat([product.left.float() for product in self.products], dim=1)

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
        zeros = {name: torch.zeros_like(core.coordinates[0]) for name, core in self._cores.items()}
        self.base: Tensors = _Mixed(zeros, base)
        self.sources: tuple[Tensors, ...] = tuple(
            _Mixed({name: core.coordinates[index] for name, core in self._cores.items()}, source)
            for index, source in enumerate(sources)
        )

    def product(self, name: str, merged: Tensor) -> LowRank | None:
        """The change of a tensor by its merged coordinates, of the lowest rank; None where it was merged as it is."""
        return self._cores[name].shortest(merged) if name in self._cores else None

    def tensor(self, name: str, merged: Tensor) -> Tensor:
        """The merged tensor in new memory on the base's device."""
        if name not in self._cores:
            return merged
        return Change(product=self._cores[name].product(merged)).apply(self._base[name])


class _Mixed(Mapping[str, Tensor]):
    """Some tensors, and all others as another mapping has them."""

    def __init__(self, own: Tensors, others: Tensors) -> None:
        self._own = own
        self._others = others

    def __getitem__(self, name: str) -> Tensor:
        return self._own[name] if name in self._own else self._others[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._others)

    def __len__(self) -> int:
        return len(self._others)


def core_bytes(sources: Sequence[Tensors], base: TensorCatalogue) -> int:
    """Bytes of a core space of these sources, beside their factors."""
    total = 0
    for name, products in _low_rank(sources, base.names):
        rows, columns = base[name].shape
        rank = sum(product.rank for product in products if product is not None)
        left, right = min(rank, rows), min(rank, columns)
        total += 4 * (rank * left + right * rank + (1 + len(sources)) * left * right)
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
    """Bases and coordinates of the products of one tensor, where None is zero; at least one is not."""
    given = tuple(product for product in products if product is not None)
    device = given[0].left.device
    with one_thread():
        columns, left = _orthonormal(torch.cat([product.left.double().cpu() for product in given], dim=1))
        rows, right = _orthonormal(torch.cat([product.right.double().cpu() for product in given]).T)
        coordinates = [
            torch.zeros(columns.shape[1], rows.shape[1], dtype=torch.float64)
            if product is None
            else product.scale * (columns.T @ product.left.double().cpu()) @ (product.right.double().cpu() @ rows)
            for product in products
        ]
    narrow = [each.float().contiguous().to(device) for each in (left, right.T, *coordinates)]
    return Core(given, narrow[0], narrow[1], tuple(narrow[2:]))


def _orthonormal(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """An orthonormal basis of the columns of a matrix X, and C with X C = the basis.

    The basis is that of the left singular vectors whose values are not zero; at least one.
    """
    basis, values, others = torch.linalg.svd(vectors, full_matrices=False)
    rank = max(1, int((values > _RANK_TOLERANCE * values[0]).sum()))
    inverse = values[:rank].clamp(min=torch.finfo(torch.float64).tiny).reciprocal()
    if not values[0]:  # adapters that have not been trained
        inverse.zero_()
    return basis[:, :rank], others[:rank].T * inverse


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
