"""DARE: drop elements of the task vectors at random and rescale the survivors, then merge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.merging.group import Group
from evomerge.merging.linear import weighted_sum
from evomerge.merging.masks import dropped, mask_key
from evomerge.merging.sums import ordered_sum
from evomerge.merging.task_arithmetic import task_weights
from evomerge.merging.task_vectors import TaskVectors
from evomerge.merging.thresholds import Thresholds
from evomerge.merging.ties import Election, Trimming

# Below this many elements the survivors are too few to infer their order statistics from those of all elements, and
# counting costs little.
SMALL_SCOPE = 1 << 16


def merge_dare_linear(group: Group) -> Iterator[tuple[str, Tensor]]:
    """theta = theta_0 + sum_i w_i t_i, with t_i = tau_i (1 - m_i) / (1 - p_i) and m_i ~ Bernoulli(p_i).

    Language models are super Mario, arXiv 2311.03099. Under `rescale: 1/(1-p)` E[t_i] = tau_i and Var[t_i] =
    tau_i^2 p_i / (1 - p_i). The masks are a function of seed, source position, tensor name and element index alone.

    Yields:
        (name, merged tensor), each once, in the order of the group's names.

    Raises:
        MergeError: `normalize` and the weights sum to zero.
    """
    vectors, weights = TaskVectors(group, Dropping(group)), task_weights(group)
    for name in group.names:
        yield (
            name,
            group.merge(
                name,
                lambda piece, name=name: weighted_sum(vectors.of(name, piece), weights).add_(piece.the_base),  # type: ignore[misc]
            ),
        )


def merge_dare_ties(group: Group) -> Iterator[tuple[str, Tensor]]:
    """TIES (`merge_ties`, arXiv 2306.01708) on the masked and rescaled task vectors of DARE (arXiv 2311.03099).

    Option `dare_ties`: `retrim` trims the masked vectors to the density, which leaves a vector that is already sparser
    as it is; `no_trim` elects and merges only, and the density has no effect.

    By definition the k-th magnitude is that of the masked vector, and is counted. With a provider of thresholds, which
    knows the unmasked vectors only, it is inferred: see `masked_lookup`.

    Yields, Raises:
        As `merge_ties`.
    """
    dropping = Dropping(group)
    vectors = TaskVectors(group, dropping)
    if group.options["dare_ties"] == "no_trim":
        return Election(group, vectors, None).merge()
    provider = group.thresholds
    lookup = None if provider is None else (lambda *asked: masked_lookup(provider, group, dropping, *asked))
    return Election(group, vectors, Trimming(group, vectors, lookup)).merge()


@dataclass(frozen=True)
class Drop:
    """t = tau (1 - m) / divisor * factor, with m ~ Bernoulli(drop_rate) for each element of one tensor of one source.

    Divisor and factor are apart because the quotient that restores an L1 norm may exceed the largest float32.
    """

    key: int
    drop_rate: float
    divisor: float = 1.0
    factor: float = 1.0

    def __call__(self, start: int, task_vector: Tensor) -> Tensor:
        """Drop and rescale, in place, the piece of the flattened tensor that begins at element `start`."""
        mask = dropped(self.key, start, start + task_vector.numel(), self.drop_rate, task_vector.device)
        # Dropped before they are rescaled: an L1 quotient that suits the survivors may overflow on what is dropped.
        return self.rescale_(task_vector.mul_(mask.logical_not_()))

    def rescale_(self, values: Tensor) -> Tensor:
        if self.divisor != 1:
            values /= self.divisor
        if self.factor != 1:
            values *= self.factor
        return values


class Dropping:
    """What is dropped from each tensor of each source, by the parameter `drop_rate` and the options of DARE."""

    def __init__(self, group: Group) -> None:
        self.rates = group.per_source("drop_rate")
        self.rescale = group.options["rescale"]
        self._group = group
        self._drops: dict[tuple[int, str], Drop | None] = {}

    def __call__(self, source: int, name: str) -> Drop | None:
        """None: the tensor is left as it is."""
        if (source, name) not in self._drops:
            self._drops[source, name] = self._drop(source, name) if self.concerns(source, name) else None
        return self._drops[source, name]

    def concerns(self, source: int, name: str) -> bool:
        targeted = self._group.options["targets"] == "all" or self._group.like(name).dim() == 2
        return self.rates[source] > 0 and targeted

    def _drop(self, source: int, name: str) -> Drop:
        key, rate = mask_key(self._group.seed, source, name), self.rates[source]
        plain = Drop(key, rate)
        if self.rescale == "none" or rate == 1:  # at rate 1 nothing survives that could be rescaled
            return plain
        if self.rescale == "1/(1-p)":
            return Drop(key, rate, divisor=1 - rate)
        whole = ordered_sum(piece.abs() for piece in TaskVectors(self._group).pieces(source, name))
        masked = TaskVectors(self._group, lambda source, name: plain)
        left = ordered_sum(piece.abs() for piece in masked.pieces(source, name))
        return Drop(key, rate, divisor=left, factor=whole) if left > 0 else plain


def masked_lookup(
    provider: Thresholds, group: Group, dropping: Dropping, source: int, scope: tuple[str, ...], k: int
) -> float | None:
    """The k-th smallest magnitude of a masked vector from the order statistics of the unmasked one.

    The survivors are a random sample of all d elements. Of those at or above rank r, (d - r + 1) (1 - p) survive on
    average; this equals the d - k + 1 elements to be kept where

        r = d + 1 - (d - k + 1) / (1 - p)

    and the threshold is the r-th smallest of the unmasked vector, rescaled like the survivors; with r < 1 there are
    fewer survivors than are to be kept, and all are. The number kept is right up to its sampling error, a share of
    sqrt(p / number kept).

    Returns:
        The threshold, or None where it must be counted: a small scope, or one in which tensors are rescaled differently
        (`rescale: l1_match`, or `targets: linear` with both kinds of tensors), so that the order is not preserved.
    """
    drops = {name: dropping(source, name) for name in scope}
    if not any(drops.values()):
        return provider.kth_magnitude(source, scope, k)
    elements, rate = group.elements(scope), dropping.rates[source]
    mixed = len(scope) > 1 and (dropping.rescale == "l1_match" or not all(drops.values()))
    if elements < SMALL_SCOPE or mixed:
        return None
    rank = elements + 1 - round((elements - k + 1) / (1 - rate)) if rate < 1 else 0
    drop = drops[scope[0]]
    if rank < 1 or drop is None:
        return 0.0
    threshold = torch.tensor(provider.kth_magnitude(source, scope, rank), dtype=group.dtype(scope))
    return float(drop.rescale_(threshold))
