"""Task arithmetic with permuted task vectors: as large in every tensor as the experts', and knowing nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from evomerge.elementwise.linear import weighted_sum
from evomerge.errors import InvalidInput
from evomerge.tensors.permutations import permutation
from evomerge.tensors.rule_tensors import Piece, RuleTensors


def merge_permuted_arithmetic(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """theta = theta_0 + sum_i lambda_i p_i, with p_i[j] = tau_i[pi(j)]; lambda_i is the parameter `weight`.

    pi is a permutation of the elements of a tensor, drawn for each source and tensor (`tensors.permutations`). Each p_i
    has in each tensor the elements of tau_i, hence its norms and quantiles, and no other trait of it.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.

    Raises:
        InvalidInput: there is no base.
    """
    weights = tensors.per_source("weight")
    for name in tensors.names:
        yield name, tensors.merge(name, _kernel(_PermutedVectors(tensors, name), weights))


def _kernel(vectors: _PermutedVectors, weights: Sequence[float]) -> Callable[[Piece], Tensor]:
    return lambda piece: weighted_sum(vectors.of(piece), weights).add_(piece.the_base)


class _PermutedVectors:
    """The permuted task vectors of one tensor."""

    def __init__(self, tensors: RuleTensors, name: str) -> None:
        if tensors.base is None:
            raise InvalidInput("permuted_arithmetic works on task vectors (source minus base); give the base model")
        like = tensors.like(name)
        self._base = tensors.base[name].detach().reshape(-1)
        self._sources = [source[name].detach().reshape(-1) for source in tensors.sources]
        self._permutations = [
            permutation(tensors.seed, source, name, like.numel()) for source in range(len(tensors.sources))
        ]
        self._device, self._dtype = like.device, tensors.dtype([name])

    def of(self, piece: Piece) -> list[Tensor]:
        """The vectors of all sources in a piece, in new memory."""
        return [self._of_source(source, piece) for source in range(len(self._sources))]

    def _of_source(self, source: int, piece: Piece) -> Tensor:
        origins = self._permutations[source].origins(piece.start, piece.stop, self._device)
        return self._taken(self._sources[source], origins) - self._taken(self._base, origins)

    def _taken(self, flat: Tensor, origins: Tensor) -> Tensor:
        return flat.index_select(0, origins.to(flat.device)).to(self._device, self._dtype)
