"""Elementwise methods as formulas: one pass over memory per tensor, as plain functions on tensors.

The functions of the other files are the definitions and go through the tensors operation by operation. The formulas
here do the same operations on the same operands in the same order, so that the bits are the same; a test holds that for
every option. Only the form differs: no operation in place, no Python number that changes between candidates, so that a
compiler turns a whole formula into one loop and never compiles it again. Weights, thresholds and keys come in two small
tensors, see `Numbers` and `Words`.

Equation numbers are those of `ties.merge_ties` (TIES), `dropping.Drop` (DARE) and `masks`, as "TIES (1)".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from evomerge.methods import METHODS
from evomerge.methods.functions import load_function
from evomerge.tensors.competition import compete
from evomerge.tensors.dropping import Drop
from evomerge.tensors.formula_numbers import Numbers, Words
from evomerge.tensors.masks import mixed_index
from evomerge.tensors.rank_masks import drop_by_rank
from evomerge.tensors.rule_tensors import RuleTensors
from evomerge.tensors.selection import merge_selected, select, variance
from evomerge.tensors.sums import added


@dataclass(frozen=True, kw_only=True)
class Formula:
    """The part of a plan that is fixed when it is compiled.

    Attributes:
        kind: `average` of the sources, `sum` of task vectors on the base, `scaled` (that sum times lambda), `election`
            (TIES), `competition` (PCB), `consensus` (TALL masks), `changes` (RAM), `selection` (SCE), `erasure` (SCE
            of all elements), `step` (nearswap) or `information` (Fisher).
        drops: DARE masks the task vectors first.
        bands: task vectors lose their smallest and largest elements first (Breadcrumbs).
        ranked: elements are dropped by rank first (DELLA), which is the statistic: the option `rescale`, or empty.
        ties: of what is tied at a threshold, what comes first in the tensor survives.
        elect, agg, weighting: the options of TIES; `agg: elected-sum` weighs after the election, see
            `elected_arithmetic`.
        variant: the option of PCB, or `zero_sum` of SCE.
    """

    kind: str
    drops: bool = False
    bands: bool = False
    ranked: str = ""
    ties: bool = False
    elect: str = ""
    agg: str = ""
    weighting: str = ""
    variant: str = ""

    @property
    def has_base(self) -> bool:
        return self.kind not in ("average", "step", "information")

    @property
    def has_statistics(self) -> bool:
        """Whether a statistic of each source's tensor goes in. Numbers and arithmetic are then in float64."""
        return self.kind == "information" or bool(self.ranked)


class Factors(NamedTuple):
    """The numbers of one tensor of one source, as Python has them.

    `ranges` are `Numbers` from LEAST to SCORE_SCALE. What is tied at the threshold survives below the index `ties`, and
    at MOST below `ties_of_most`; None: everywhere.
    """

    weight: float = 1.0
    threshold: float = 0.0
    drop: Drop | None = None
    ranges: tuple[float, ...] = (0.0,) * 5
    ties: int | None = None
    ties_of_most: int | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A rule as a formula, with the numbers that change between candidates.

    Attributes:
        factors: tensor name -> the numbers of each source.
        scale: lambda; of a consensus the number of masks that have to agree, of a step its limit.
        scope_of: tensor name -> the tensors whose votes decide its zero sums; None where no votes decide them.
        others: tensor name -> its formula, of tensors with another one than the rule's.
        statistics: tensor name -> its statistic in each source, for formulas that have some.
    """

    formula: Formula
    factors: Callable[[str], list[Factors]]
    scale: float = 1.0
    scope_of: Callable[[str], tuple[str, ...]] | None = None
    others: Mapping[str, Formula] = field(default_factory=dict)
    statistics: Callable[[str], Sequence[Tensor]] | None = None

    def formula_of(self, name: str) -> Formula:
        return self.others.get(name, self.formula)


def plan_rule(method: str, tensors: RuleTensors) -> Plan | None:
    """The rule as a formula, or None where the method or its options have none: then it is merged eagerly.

    Raises:
        MergeError: the parameters give no merge: weights that sum to zero are to be normalised.
    """
    path = METHODS[method].plan
    plan: Plan | None = None if path is None else load_function(path)(tensors)
    return plan


def same_for_all(weights: Sequence[float]) -> Callable[[str], list[Factors]]:
    """`Plan.factors` of a method with the same weights for every tensor."""
    factors = [Factors(weight) for weight in weights]
    return lambda name: factors


def evaluate(
    formula: Formula,
    base: Tensor | None,
    sources: Sequence[Tensor],
    *,
    statistics: Sequence[Tensor] = (),
    numbers: Tensor,
    words: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """One piece of the merged tensor.

    Args:
        base, sources: the same piece of one flattened tensor of each model, shape (n,), any float dtype up to float32.
        statistics: likewise of the statistic of each source, where the formula has some.
        numbers: float32 (with statistics float64) of shape (13, sources), see `Numbers`.
        words: int32 of shape (6, sources), see `Words`.

    Returns:
        float32 of shape (n,), and for elections the votes: the sign of each elected sum, -1, 0 or +1. Where a weight is
        NaN the vote is NaN, and the merged value has no meaning.
    """
    if formula.kind == "information":
        return _weigh_by_information(sources, statistics, numbers), None
    if formula.kind == "step":
        return _limited_step(*(source.float() for source in sources), limit=numbers[Numbers.LAMBDA, 0]), None
    if base is None:
        return _weighted_sum([source.float() for source in sources], numbers), None
    origin = base.float()
    vectors = [source.float() - origin for source in sources]
    if formula.drops:
        vectors = [_drop(vector, numbers[:, i], words[:, i]) for i, vector in enumerate(vectors)]
    if formula.ranked:
        given, numbers = zip(vectors, statistics, strict=True), numbers.float()
        vectors = [_drop_by_rank(formula, *each, numbers[:, i], words[:, i]) for i, each in enumerate(given)]
    if formula.bands:
        vectors = [_band(formula, vector, numbers[:, i], words[:, i]) for i, vector in enumerate(vectors)]
    if formula.kind == "sum":
        return _weighted_sum(vectors, numbers) + origin, None
    if formula.kind == "scaled":
        return _weighted_sum(vectors, numbers) * numbers[Numbers.LAMBDA, 0] + origin, None
    if formula.kind == "changes":
        return _merge_changes(vectors, numbers) + origin, None
    if formula.kind == "consensus":
        return _agree(vectors, numbers) + origin, None
    if formula.kind in ("selection", "erasure"):
        return _merge_selection(formula, vectors, numbers, words) + origin, None
    if formula.kind == "competition":
        return compete(formula.variant, vectors, numbers) + origin, None
    merged, votes = _elect(formula, vectors, numbers, words)
    return merged * numbers[Numbers.LAMBDA, 0] + 0.0 + origin, votes  # TIES (6)


def _weighted_sum(tensors: Sequence[Tensor], numbers: Tensor) -> Tensor:
    return added([tensor * numbers[Numbers.WEIGHT, i] for i, tensor in enumerate(tensors)])


def _weigh_by_information(sources: Sequence[Tensor], fishers: Sequence[Tensor], numbers: Tensor) -> Tensor:
    """The mean of `fisher.fisher_mean`, rounded to float32."""
    shares = []
    for i, fisher in enumerate(fishers):
        wide, floor = fisher.double(), numbers[Numbers.THRESHOLD, i]
        shares.append(torch.where(wide < floor, floor, wide) * numbers[Numbers.WEIGHT, i])
    denominator = added(shares)
    numerator = added([share * source.double() for share, source in zip(shares, sources, strict=True)]) + 0.0
    merged = torch.where(denominator > 0, numerator / denominator, sources[0].double())
    return merged.float()


def _drop(vector: Tensor, numbers: Tensor, words: Tensor) -> Tensor:
    """Drop and rescale as `dropping.Drop` does; the limit 0 drops nothing."""
    bits = _random_bits(vector, words)
    kept = torch.where(bits < words[Words.LIMIT], 0.0, 1.0)  # masks (4)
    return vector * kept / numbers[Numbers.DIVISOR] * numbers[Numbers.FACTOR]  # DARE (1)


def _drop_by_rank(formula: Formula, vector: Tensor, ranks: Tensor, numbers: Tensor, words: Tensor) -> Tensor:
    """Survivors of `della.RankedDrop`; the slope is in LEAST, the smallest probability in MOST."""
    slope, least = numbers[Numbers.LEAST], numbers[Numbers.MOST]
    bits = _random_bits(vector, words)
    left = drop_by_rank(vector, ranks, bits, slope=slope, least=least, divided=formula.ranked == "1/p")
    return left / numbers[Numbers.DIVISOR] * numbers[Numbers.FACTOR] if formula.ranked == "l1_match" else left


def _random_bits(vector: Tensor, words: Tensor) -> Tensor:
    indices = torch.arange(vector.shape[0], dtype=torch.int32, device=vector.device) + words[Words.START]
    return mixed_index(indices, words[Words.KEY_LOW], words[Words.KEY_HIGH])


def _band(formula: Formula, vector: Tensor, numbers: Tensor, words: Tensor) -> Tensor:
    """Survivors of `breadcrumbs.Band`."""
    size = vector.abs()
    dropped = (size < numbers[Numbers.THRESHOLD]) | (size > numbers[Numbers.MOST])
    if formula.ties:
        indices = torch.arange(vector.shape[0], dtype=torch.int32, device=vector.device)
        dropped = dropped | ((size == numbers[Numbers.THRESHOLD]) & (indices >= words[Words.TIES]))
        dropped = dropped | ((size == numbers[Numbers.MOST]) & (indices >= words[Words.TIES_OF_MOST]))
    return torch.where(dropped, size * numbers[Numbers.ZERO], vector)


def _elect(formula: Formula, vectors: Sequence[Tensor], numbers: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """Trim, elect and merge as `ties.Election` does, for task vectors that are not trimmed yet."""
    weights, zero = numbers[Numbers.WEIGHT], numbers[Numbers.ZERO, 0]
    cuts: Sequence[Tensor] = numbers[Numbers.THRESHOLD].unbind()
    if formula.ties and not formula.bands:
        indices = torch.arange(vectors[0].shape[0], dtype=torch.int32, device=vectors[0].device)
        ties, above = words[Words.TIES], numbers[Numbers.ABOVE]
        cuts = [torch.where(indices < ties[i], cut, above[i]) for i, cut in enumerate(cuts)]
    trimmed = [torch.where(vector.abs() < cut, zero, vector) for vector, cut in zip(vectors, cuts, strict=True)]  # (1)
    if formula.agg != "elected-sum":
        trimmed = [vector * weights[i] for i, vector in enumerate(trimmed)]  # TIES (2)
    total = mass = added(trimmed)  # TIES (3)
    if formula.elect == "count":
        total = added([torch.where(each < zero, -1.0, torch.where(each > zero, 1.0, zero)) for each in trimmed])
    votes = torch.where(total < zero, -1.0, torch.where(total > zero, 1.0, total))
    if formula.elect == "count":
        votes = torch.where(mass == mass, votes, mass)  # counting lost the NaN
    sign = torch.where(votes == zero, numbers[Numbers.ZERO_SIGN, 0], votes)  # TIES (4)
    sized = [each * sign for each in trimmed]
    if formula.agg == "elected-sum":
        elected = [torch.where(size <= zero, zero, each) for size, each in zip(sized, trimmed, strict=True)]
        return added([each * weights[i] for i, each in enumerate(elected)]), votes
    # TIES (5)
    if formula.agg == "dis-max":
        largest = torch.where(sized[0] > zero, sized[0], zero)
        for each in sized[1:]:
            largest = torch.where(each > largest, each, largest)
        return largest * sign, votes
    agreeing = [each > zero for each in sized]
    # Values with their sign: sums of one sign are the same to the bit with and without it.
    merged = added([torch.where(agrees, each, zero) for agrees, each in zip(agreeing, trimmed, strict=True)])
    if formula.agg == "dis-mean" and formula.weighting == "count":
        count = added([torch.where(agrees, 1.0, zero) for agrees in agreeing])
        merged = merged / torch.where(count > 1, count, 1.0)
    elif formula.agg == "dis-mean" and formula.weighting == "norm":
        divisor = added([torch.where(agrees, weights[i], zero) for i, agrees in enumerate(agreeing)])
        merged = merged / torch.where(divisor.abs() < 1e-8, 1.0, divisor)
    return merged, votes


def _agree(vectors: Sequence[Tensor], numbers: Tensor) -> Tensor:
    """The masked sum of `consensus.merge_consensus`."""
    zero, whole = numbers[Numbers.ZERO, 0], added(vectors)
    counted = added(
        [
            torch.where(vector.abs() > (whole - vector).abs() * numbers[Numbers.THRESHOLD, i], 1.0, zero)
            for i, vector in enumerate(vectors)
        ]
    )
    total = _weighted_sum(vectors, numbers)
    return torch.where(counted >= numbers[Numbers.LAMBDA, 0], total, (total + whole) * zero)


def _merge_changes(vectors: Sequence[Tensor], numbers: Tensor) -> Tensor:
    """The mean of changes of `ram.merge_ram_plus`; WEIGHT is the factor of what one source alone has changed."""
    zero = numbers[Numbers.ZERO, 0]
    changed = [torch.where(each.abs() <= numbers[Numbers.THRESHOLD, i], zero, 1.0) for i, each in enumerate(vectors)]
    count = added(changed)
    kept = [each * vector for each, vector in zip(changed, vectors, strict=True)]
    alone = [torch.where(count == 1, each * numbers[Numbers.WEIGHT, i], each) for i, each in enumerate(kept)]
    return added([torch.zeros_like(count), *alone]) / torch.where(count < 1, 1.0, count)


def _merge_selection(formula: Formula, vectors: Sequence[Tensor], numbers: Tensor, words: Tensor) -> Tensor:
    """Selection by variance, and what `sce.merge_sce` makes of it; WEIGHT is c_i."""
    if formula.kind == "selection":
        tied_out = None
        if formula.ties:
            indices = torch.arange(vectors[0].shape[0], dtype=torch.int32, device=vectors[0].device)
            tied_out = indices >= words[Words.TIES, 0]
        vectors = select(vectors, variance(vectors), numbers[Numbers.THRESHOLD, 0], tied_out=tied_out)
    shares = numbers[Numbers.WEIGHT].unbind()
    return merge_selected(vectors, shares, zero_is_positive=formula.variant == "plus")


def _limited_step(first: Tensor, second: Tensor, *, limit: Tensor) -> Tensor:
    """The element of `nearswap.merge_nearswap`."""
    step = second - first
    clipped = torch.where(step < -limit, -limit, torch.where(step > limit, limit, step))
    return torch.where(step.abs() <= limit, second, clipped + first)
