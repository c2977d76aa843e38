"""TIES: trim each task vector, elect a sign per element, merge what agrees with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from evomerge.tensors.dropping import Drop
from evomerge.tensors.order_statistics import KEEP_ALL, KEEP_NOTHING, CountedThresholds, Cut, Thresholds, trim
from evomerge.tensors.plans import Factors, Formula, Plan
from evomerge.tensors.rule_tensors import Piece, RuleTensors
from evomerge.tensors.task_vectors import TaskVectors

Lookup = Callable[[int, tuple[str, ...], int], float | None]
"""(source, scope, k) -> the k-th smallest magnitude of the vectors to be trimmed, or None where it must be counted."""


def merge_ties(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """TIES-Merging, arXiv 2306.01708, for every element of every tensor:

        t_i = tau_i where |tau_i| >= its k-th smallest in scope, else 0        (1) trim; k by `kept_rule`, `kept_rank`
        x_i = w_i t_i                                                          (2)
        g   = sign(sum_i x_i), or sign(sum_i sign(x_i)) under `elect: count`   (3) elect
        g   = the majority sign of g over the scope, or +1, where g = 0        (4) `zero_sign`
        m   = mean, sum or largest of the x_i with sign g                      (5) merge; `agg`, `weighting`
        theta = theta_0 + lambda m                                             (6)

    With a provider of thresholds, elements tied at the threshold are all kept, also under `kept_rule: topk`. Under
    `exact` those of lowest index are, as many as the density says.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.

    Raises:
        MergeError: all weights are zero and `weighting: norm` divides by them.
    """
    vectors = TaskVectors(tensors)
    return Election(tensors, vectors, trimming_of(tensors, vectors)).merge()


def plan_ties(tensors: RuleTensors) -> Plan | None:
    """The formula of `merge_ties`, or None where it has none: see `plan_election`."""
    return plan_election(tensors, trimming_of(tensors, TaskVectors(tensors)), None)


def trimming_of(tensors: RuleTensors, vectors: TaskVectors) -> Trimming:
    """The trimming of task vectors as they are, of which a provider of thresholds knows the magnitudes."""
    provider = tensors.thresholds
    return Trimming(tensors, vectors, None if provider is None else provider.kth_magnitude, provider)


def plan_election(
    tensors: RuleTensors,
    trimming: Trimming | None,
    drops: Callable[[int, str], Drop | None] | None,
    bands: Callable[[str], list[Factors]] | None = None,
) -> Plan | None:
    """The formula of an election, on vectors that are trimmed and masked or (None) are not, or whose `bands` are left.

    None where thresholds are counted and only some of the elements at a threshold survive (`topk`, and `exact` with
    masks): which ones is known from the elements before them, not from a formula.

    Raises:
        MergeError: see `merge_ties`.
    """
    options = tensors.options
    counted, rule = tensors.thresholds is None or drops is not None, options.get("kept_rule")  # DELLA trims nothing
    if trimming is not None and ((rule == "topk" and counted) or (rule == "exact" and drops is not None)):
        return None
    weights = tensors.per_source("weight")
    agg, weighting = str(options["agg"]), str(options["weighting"])
    if agg == "dis-mean" and weighting == "norm":
        tensors.normalisable([abs(weight) for weight in weights])

    def factors(name: str) -> list[Factors]:
        cuts = [KEEP_ALL] * len(weights) if trimming is None else trimming.cuts(name)
        return [
            Factors(
                weight,
                cut.threshold,
                None if drops is None else drops(source, name),
                ties=None if trimming is None else trimming.end_of_ties(source, name, cut),
            )
            for source, (weight, cut) in enumerate(zip(weights, cuts, strict=True))
        ]

    return Plan(
        formula=Formula(
            kind="election",
            drops=drops is not None,
            bands=bands is not None,
            ties=rule == "exact" and (trimming is not None or bands is not None),
            elect=str(options["elect"]),
            agg=agg,
            weighting=weighting,
        ),
        factors=bands or factors,
        scale=tensors.shared("lambda"),
        scope_of=tensors.scope_of if options["zero_sign"] == "global majority" else None,
    )


def kept_rank(kept_rule: str, density: float, elements: int) -> int:
    """k such that an element is kept where its magnitude is at least the k-th smallest; 0: everything is kept.

    `ge_kth` keeps int(dK) + 1 of d elements, `topk` and `exact` int(dK), `mask_rate` d - int(d(1-K)) + 1; each keeps at
    least the largest, and everything at K = 1. But `exact` keeps nothing at K = 0: k is then one more than there are.
    """
    if density == 1:
        return 0
    if kept_rule == "exact" and density == 0:
        return elements + 1
    match kept_rule:
        case "topk" | "exact":
            kept = max(1, int(elements * density))
            return elements - kept + 1 if kept < elements else 0
        case "mask_rate":
            return int(elements * (1 - density))
        case _:
            return elements - int(elements * density)


def elected_sum(vectors: Sequence[Tensor], elect: str) -> Tensor:
    """The tensor whose sign is elected, (3): sum_i x_i (`mass`) or sum_i sign(x_i) (`count`)."""
    votes = [vector.sign() for vector in vectors] if elect == "count" else vectors
    total = votes[0].clone()
    for vote in votes[1:]:
        total += vote
    return total


def merge_agreeing(
    vectors: Sequence[Tensor], sign: Tensor, weights: Sequence[float], *, agg: str, weighting: str
) -> Tensor:
    """Merge, element by element, those vectors that have the elected sign: m of (5).

    Args:
        vectors: x_i = w_i t_i of each source, of one shape.
        sign: the elected sign g, +1 or -1.
        weights: w_i.
        agg: `dis-mean`, `dis-sum` (the sum) or `dis-max` (the x_i of largest magnitude).
        weighting: what dis-mean divides the sum by: the number of kept x_i (`count`), the sum of their weights (`norm`)
            or nothing (`sum`).
    """
    merged = torch.zeros_like(sign)
    divisor = torch.zeros_like(sign)
    for vector, weight in zip(vectors, weights, strict=True):
        kept = (vector * sign).clamp_(min=0)  # magnitude of what agrees, 0 elsewhere: much faster than selecting
        if agg == "dis-max":
            torch.maximum(merged, kept, out=merged)
        else:
            merged += kept
        if agg == "dis-mean" and weighting != "sum":
            divisor += kept.sign_() * weight if weighting == "norm" else kept.sign_()
    if agg == "dis-mean" and weighting == "count":
        merged /= divisor.clamp_(min=1)
    elif agg == "dis-mean" and weighting == "norm":
        # Where nothing is kept: 0 / 1. Weights of both signs that cancel are left undivided rather than blown up.
        merged /= torch.where(divisor.abs() < 1e-8, 1.0, divisor)
    return merged.mul_(sign)


class Trimming:
    """The cut of each tensor of each source, which is (1). Those of a whole scope are determined once, at first use."""

    def __init__(
        self, tensors: RuleTensors, vectors: TaskVectors, lookup: Lookup | None, provider: Thresholds | None = None
    ) -> None:
        """Without a provider, which knows the vectors as they are, thresholds are counted under `kept_rule: exact`."""
        self._tensors = tensors
        self._vectors = vectors
        self._lookup = lookup
        self._provider = provider
        self._counted = CountedThresholds(vectors.pieces, tensors.dtype)
        self._densities = tensors.per_source("density")
        self._rule = str(tensors.options["kept_rule"])
        self._cuts: dict[tuple[str, ...], list[dict[str, Cut]]] = {}

    def cuts(self, name: str) -> list[Cut]:
        """One cut per source."""
        scope = self._tensors.scope_of(name)
        if scope not in self._cuts:
            elements = self._tensors.elements(scope)
            self._cuts[scope] = [self._cut(source, scope, elements) for source in range(len(self._densities))]
        return [cut[name] for cut in self._cuts[scope]]

    def _cut(self, source: int, scope: tuple[str, ...], elements: int) -> dict[str, Cut]:
        k = kept_rank(self._rule, self._densities[source], elements)
        if k == 0 or k > elements:
            return dict.fromkeys(scope, KEEP_ALL if k == 0 else KEEP_NOTHING)
        threshold = None if self._lookup is None or self._is_counted else self._lookup(source, scope, k)
        if threshold is not None:
            left = None
            if self._provider is not None and self._rule == "exact":
                left = self._provider.ties_from(source, scope, k)
            if left is None:
                return dict.fromkeys(scope, Cut(threshold))
            ties = self._counted.divided(source, scope, threshold, left)
        else:
            threshold = self._counted.kth_magnitude(source, scope, k)
            if self._rule not in ("topk", "exact"):
                return dict.fromkeys(scope, Cut(threshold))
            ties = self._counted.ties_to_keep(source, scope, threshold, kept=elements - k + 1)
        return {name: Cut(threshold, count) for name, count in ties.items()}

    def end_of_ties(self, source: int, name: str, cut: Cut) -> int | None:
        """The index below which what is tied at a cut of this object survives in a tensor; None: everywhere."""
        return None if cut.ties is None else self._vectors.end_of_equal(source, name, cut.threshold, cut.ties)

    @property
    def _is_counted(self) -> bool:
        return self._rule == "exact" and self._provider is None


class Election:
    """Elects signs and merges what agrees: the second half of TIES, on vectors that are trimmed or (None) are not."""

    def __init__(self, tensors: RuleTensors, vectors: TaskVectors, trimming: Trimming | None) -> None:
        self._tensors = tensors
        self._vectors = vectors
        self._trimming = trimming
        self._weights = tensors.per_source("weight")
        self._factor = tensors.shared("lambda")
        self._elect, self._agg, self._weighting = (str(tensors.options[key]) for key in ("elect", "agg", "weighting"))
        self._by_majority = tensors.options["zero_sign"] == "global majority"
        self._majorities: dict[tuple[str, ...], bool] = {}

    def merge(self) -> Iterator[tuple[str, Tensor]]:
        """See `merge_ties`."""
        if self._agg == "dis-mean" and self._weighting == "norm":
            self._tensors.normalisable([abs(weight) for weight in self._weights])
        for name in self._tensors.names:
            yield name, self._merge_tensor(name)

    def _merge_tensor(self, name: str) -> Tensor:
        # The sign of a zero sum matters only where values cancel exactly, and finding the majority takes a pass over
        # the scope. So until it is known a zero counts as positive, and the majority is asked for when it matters.
        scope = self._tensors.scope_of(name) if self._by_majority else ()
        assumed = self._majorities.get(scope, True)
        theta, cancelled = self._merge_with(name, zero_is_positive=assumed)
        if self._by_majority and cancelled and self._majority_is_positive(scope) != assumed:
            theta, _ = self._merge_with(name, zero_is_positive=not assumed)
        return theta

    def _majority_is_positive(self, scope: tuple[str, ...]) -> bool:
        """Whether more elements of the scope have a positive than a negative elected sum; a balance is negative."""
        if scope not in self._majorities:
            balance = 0
            for name in scope:
                vote = self._vote(name)
                for piece in self._tensors.pieces(name):
                    balance += int(vote(piece)[0].sign().sum())  # exact: a piece has at most 2**24 elements
            self._majorities[scope] = balance > 0
        return self._majorities[scope]

    def _merge_with(self, name: str, *, zero_is_positive: bool) -> tuple[Tensor, bool]:
        """The merged tensor, and whether somewhere kept values sum to exactly zero."""
        cancelled = torch.zeros((), dtype=torch.bool, device=self._tensors.like(name).device)
        vote = self._vote(name)

        def kernel(piece: Piece) -> Tensor:
            nonlocal cancelled
            total, vectors = vote(piece)
            sign = (total >= 0 if zero_is_positive else total > 0).to(total.dtype).mul_(2).sub_(1)  # (3), (4)
            merged = merge_agreeing(vectors, sign, self._weights, agg=self._agg, weighting=self._weighting)
            if self._by_majority:
                # Kept values under a zero sum: there are some of this sign, and with them some of the other.
                cancelled |= ((total == 0) & (merged != 0)).any()
            # A zero of either sign becomes +0, so that the sign of an irrelevant zero sum is seen nowhere.
            return merged.mul_(self._factor).add_(0.0).add_(piece.the_base)  # (6)

        return self._tensors.merge(name, kernel), bool(cancelled)

    def _vote(self, name: str) -> Callable[[Piece], tuple[Tensor, list[Tensor]]]:
        """For the pieces of a tensor, in order: the tensor whose sign is elected, and the vectors x_i of (2)."""
        cuts = None if self._trimming is None else self._trimming.cuts(name)

        def vote(piece: Piece) -> tuple[Tensor, list[Tensor]]:
            nonlocal cuts
            vectors = self._vectors.of(name, piece)
            if cuts is not None:
                trimmed = [trim(vector, cut) for vector, cut in zip(vectors, cuts, strict=True)]  # (1)
                vectors, cuts = [vector for vector, _ in trimmed], [cut for _, cut in trimmed]
            for vector, weight in zip(vectors, self._weights, strict=True):
                if weight != 1:
                    vector *= weight  # (2)
            return elected_sum(vectors, self._elect), vectors

        return vote
