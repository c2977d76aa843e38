"""The arithmetic of the two toy methods: the second file of an extension."""

from collections.abc import Iterator

import torch
from torch import Tensor

from evomerge.errors import InvalidInput
from evomerge.merging import RuleTensors
from evomerge.tensors.rule_tensors import Piece


def merge_largest(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """theta = theta_0 + lambda * tau_j, with j the source whose |tau_j| is largest; of equal ones the first."""
    factor = tensors.shared("lambda")

    def merged(piece: Piece) -> Tensor:
        vectors = torch.stack(piece.task_vectors())
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))[0]
        return largest.mul_(factor).add_(piece.the_base)

    for name in tensors.names:
        yield name, tensors.merge(name, merged)


def merge_by_precision(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """theta = sum_i p_i theta_i / sum_i p_i, with p_i the statistic of the source; the mean where no source has one."""
    for name in tensors.names:
        given = [each for each in tensors.statistic(name) if each is not None]
        if given and len(given) < len(tensors.sources):
            raise InvalidInput(f"only some sources have a precision of {name!r}; give it for all or for none")
        flat = [each.reshape(-1) for each in given] or [torch.ones(tensors.like(name).numel())] * len(tensors.sources)

        def merged(piece: Piece, flat: list[Tensor] = flat) -> Tensor:
            shares = [each[piece.start : piece.stop].to(piece.sources[0]) for each in flat]
            weighted = torch.stack([source * share for source, share in zip(piece.sources, shares, strict=True)])
            return weighted.sum(0) / torch.stack(shares).sum(0)

        yield name, tensors.merge(name, merged)
