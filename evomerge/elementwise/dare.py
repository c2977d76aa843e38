"""DARE: drop elements of the task vectors at random and rescale the survivors, then merge."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from evomerge.elementwise.linear import effective_weights, weighted_sum
from evomerge.elementwise.ties import Election, Trimming, plan_election
from evomerge.tensors.dropping import Dropping
from evomerge.tensors.order_statistics import Thresholds
from evomerge.tensors.plans import Factors, Formula, Plan
from evomerge.tensors.rule_tensors import RuleTensors
from evomerge.tensors.task_vectors import TaskVectors

# Below this many elements the survivors are too few to infer their order statistics from those of all elements, and
# counting costs little.
SMALL_SCOPE = 1 << 16


def merge_dare_linear(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """theta = theta_0 + sum_i w_i t_i, with t_i = tau_i (1 - m_i) / (1 - p_i) and m_i ~ Bernoulli(p_i).

    Language models are super Mario, arXiv 2311.03099. Under `rescale: 1/(1-p)` E[t_i] = tau_i and Var[t_i] =
    tau_i^2 p_i / (1 - p_i). The masks are a function of seed, source position, tensor name and element index alone.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.

    Raises:
        MergeError: `normalize` and the weights sum to zero.
    """
    vectors, weights = TaskVectors(tensors, Dropping(tensors)), effective_weights(tensors)
    for name in tensors.names:
        yield (
            name,
            tensors.merge(
                name,
                lambda piece, name=name: weighted_sum(vectors.of(name, piece), weights).add_(piece.the_base),  # type: ignore[misc]
            ),
        )


def merge_dare_ties(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """TIES (`merge_ties`, arXiv 2306.01708) on the masked and rescaled task vectors of DARE (arXiv 2311.03099).

    Option `dare_ties`: `retrim` trims the masked vectors to the density, which leaves a vector that is already sparser
    as it is; `no_trim` elects and merges only, and the density has no effect.

    By definition the k-th magnitude is that of the masked vector, and is counted. With a provider of thresholds, which
    knows the unmasked vectors only, it is inferred: see `masked_lookup`.

    Yields, Raises:
        As `merge_ties`.
    """
    dropping = Dropping(tensors)
    vectors = TaskVectors(tensors, dropping)
    return Election(tensors, vectors, _trimming(tensors, vectors, dropping)).merge()


def plan_dare_linear(tensors: RuleTensors) -> Plan:
    """The formula of `merge_dare_linear`."""
    dropping, weights = Dropping(tensors), effective_weights(tensors)
    return Plan(
        formula=Formula(kind="sum", drops=True),
        factors=lambda name: [Factors(weight, drop=dropping(source, name)) for source, weight in enumerate(weights)],
    )


def plan_dare_ties(tensors: RuleTensors) -> Plan | None:
    """The formula of `merge_dare_ties`, or None where it has none: see `plan_election`."""
    dropping = Dropping(tensors)
    return plan_election(tensors, _trimming(tensors, TaskVectors(tensors, dropping), dropping), dropping)


def _trimming(tensors: RuleTensors, vectors: TaskVectors, dropping: Dropping) -> Trimming | None:
    """The trimming of the masked vectors; None where they are not trimmed."""
    if tensors.options["dare_ties"] == "no_trim":
        return None
    provider = tensors.thresholds
    lookup = None if provider is None else (lambda *asked: masked_lookup(provider, tensors, dropping, *asked))
    return Trimming(tensors, vectors, lookup)


def masked_lookup(
    provider: Thresholds, tensors: RuleTensors, dropping: Dropping, source: int, scope: tuple[str, ...], k: int
) -> float | None:
    """The k-th smallest magnitude of a masked vector from the order statistics of the unmasked one.

    The survivors are a random sample of all d elements. Of those at or above rank r, (d - r + 1) (1 - p) survive on
    average; this equals the d - k + 1 elements to be kept where

        r = d + 1 - (d - k + 1) / (1 - p)         (1)

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
    elements, rate = tensors.elements(scope), dropping.rates[source]
    mixed = len(scope) > 1 and (dropping.rescale == "l1_match" or not all(drops.values()))
    if elements < SMALL_SCOPE or mixed:
        return None
    rank = elements + 1 - round((elements - k + 1) / (1 - rate)) if rate < 1 else 0  # (1)
    drop = drops[scope[0]]
    if rank < 1 or drop is None:
        return 0.0
    threshold = torch.tensor(provider.kth_magnitude(source, scope, rank), dtype=tensors.dtype(scope))
    return float(drop.rescale_(threshold))
