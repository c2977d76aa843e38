"""Task arithmetic with trimmed and sign-elected task vectors: what AdaMerging++ trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from evomerge.elementwise.linear import weighted_sum
from evomerge.elementwise.ties import elected_sum, trimming_of
from evomerge.tensors.order_statistics import Cut, trim
from evomerge.tensors.plans import Factors, Formula, Plan
from evomerge.tensors.rule_tensors import Piece, RuleTensors
from evomerge.tensors.task_vectors import TaskVectors


def merge_elected_arithmetic(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """AdaMerging++, arXiv 2310.02575, with (1), (3) and (4) of `evomerge.elementwise.ties.merge_ties`:

        t_i = tau_i trimmed by density                                     (1)
        g   = sign(sum_i t_i), or sign(sum_i sign(t_i)) under `elect: count`; where 0, by `zero_sign`  (3), (4)
        theta = theta_0 + sum_i lambda_i t_i [sign(t_i) = g]

    The election is over the task vectors as they are: the weights lambda_i come after it.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.
    """
    weights = tensors.per_source("weight")
    vectors = ElectedVectors(tensors)
    for name in tensors.names:
        yield name, tensors.merge(name, _kernel(vectors.of(name), weights))


def _kernel(elected: Callable[[Piece], list[Tensor]], weights: Sequence[float]) -> Callable[[Piece], Tensor]:
    # A zero of either sign becomes +0, as in TIES.
    return lambda piece: weighted_sum(elected(piece), weights).add_(0.0).add_(piece.the_base)


def plan_elected_arithmetic(tensors: RuleTensors) -> Plan | None:
    """The formula of `merge_elected_arithmetic`; None where it is not known from a threshold alone what is kept."""
    options = tensors.options
    if options["kept_rule"] == "topk" and tensors.thresholds is None:
        return None
    weights = tensors.per_source("weight")
    trimming = trimming_of(tensors, TaskVectors(tensors))

    def factors(name: str) -> list[Factors]:
        return [
            Factors(weight, cut.threshold, ties=trimming.end_of_ties(source, name, cut))
            for source, (weight, cut) in enumerate(zip(weights, trimming.cuts(name), strict=True))
        ]

    exact = options["kept_rule"] == "exact"
    return Plan(
        formula=Formula(kind="election", elect=str(options["elect"]), agg="elected-sum", ties=exact),
        factors=factors,
        scope_of=tensors.scope_of if options["zero_sign"] == "global majority" else None,
    )


class ElectedVectors:
    """The task vectors of a rule, each with zeros where it is trimmed or has another sign than the elected one.

    They do not depend on the weights: majorities, and cuts that are counted, are cached with the sources.
    """

    def __init__(self, tensors: RuleTensors) -> None:
        self._tensors = tensors
        self._vectors = TaskVectors(tensors)
        self._trimming = trimming_of(tensors, self._vectors)
        self._elect = str(tensors.options["elect"])
        self._by_majority = tensors.options["zero_sign"] == "global majority"
        self._choices = tensors.per_source("density"), tensors.options["kept_rule"], self._elect

    def of(self, name: str) -> Callable[[Piece], list[Tensor]]:
        """A function from the pieces of a tensor, in order, to those of the vectors, in new memory."""
        trimmed = self._trimmed(name)

        def elected(piece: Piece) -> list[Tensor]:
            vectors = trimmed(piece)
            total = elected_sum(vectors, self._elect)
            # The majority takes a pass over the scope, and matters only where kept values cancel exactly.
            negative = self._by_majority and _cancel(vectors, total) and not self._majority_is_positive(name)
            sign = total.sign().masked_fill_(total == 0, -1.0 if negative else 1.0)
            # NaN is not at most 0, so that it is seen in the result.
            return [vector.masked_fill(vector * sign <= 0, 0.0) for vector in vectors]

        return elected

    def _trimmed(self, name: str) -> Callable[[Piece], list[Tensor]]:
        cuts = self._cuts(name)

        def trimmed(piece: Piece) -> list[Tensor]:
            nonlocal cuts
            pairs = [trim(vector, cut) for vector, cut in zip(self._vectors.of(name, piece), cuts, strict=True)]
            cuts = [cut for _, cut in pairs]
            return [vector for vector, _ in pairs]

        return trimmed

    def _cuts(self, name: str) -> list[Cut]:
        if self._tensors.thresholds is not None:
            return self._trimming.cuts(name)
        scope = self._tensors.scope_of(name)
        return self._tensors.cached(
            ("elected cuts", self._choices, self._key(name)),
            lambda: {each: self._trimming.cuts(each) for each in scope},
        )[name]

    def _majority_is_positive(self, name: str) -> bool:
        """Whether more elements of the tensor's scope have a positive than a negative elected sum."""
        scope = self._tensors.scope_of(name)

        def positive() -> bool:
            balance = 0
            for each in scope:
                trimmed = self._trimmed(each)
                for piece in self._tensors.pieces(each):
                    balance += int(elected_sum(trimmed(piece), self._elect).sign().sum())
            return balance > 0

        return self._tensors.cached(("elected majority", self._choices, self._key(name)), positive)

    def _key(self, name: str) -> tuple[str, ...]:
        """Identifies the scope of a tensor among those of the whole model, by which the cache is keyed already."""
        scope = self._tensors.scope_of(name)
        return () if scope == self._tensors.whole_model else scope


def _cancel(vectors: Sequence[Tensor], total: Tensor) -> bool:
    """Whether somewhere values sum to exactly zero that are not all zero."""
    zero = total == 0
    return any(bool((zero & (vector != 0)).any()) for vector in vectors)
