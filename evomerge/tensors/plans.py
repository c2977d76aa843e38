"""Elementwise methods as formulas: one pass over memory per tensor, as plain functions on tensors.

The functions of the other files are the definitions and go through the tensors operation by operation. The formulas
here do the same operations on the same operands in the same order, so that the bits are the same; a test holds that for
every option. Only the form differs: no operation in place, no Python number that changes between candidates, so that a
compiler turns a whole formula into one loop and never compiles it again. Weights, thresholds and keys come in two small
tensors, see `Numbers` and `Words`.

Equation numbers are those of `ties.merge_ties` (TIES), `dropping.Drop` (DARE) and `masks`, as "TIES (1)".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evomerge.methods import METHODS
from evomerge.methods.functions import load_function
from evomerge.tensors.competition import compete
from evomerge.tensors.dropping import Drop
from evomerge.tensors.formula_numbers import Numbers, Words
from evomerge.tensors.masks import index_words, mixed_index
from evomerge.tensors.rank_masks import drop_by_rank
from evomerge.tensors.rule_tensors import RuleTensors
from evomerge.tensors.sums import added


@dataclass(frozen=True, kw_only=True)
class Formula:
    """The part of a plan that is fixed when it is compiled.

    Attributes:
        kind: `average` of the sources, `sum` of task vectors on the base, `scaled` (that sum times lambda), `election`
            (TIES), `competition` (PCB), `consensus` (TALL masks), `changes` (RAM), `step` (nearswap) or `information`
            (Fisher).
        drops: DARE masks the task vectors first.
        bands: task vectors lose their smallest and largest elements first (Breadcrumbs).
        ranked: elements are dropped by rank first (DELLA), which is the statistic: the option `rescale`, or empty.
        elect, agg, weighting: the options of TIES; `agg: elected-sum` weighs after the election, see
            `elected_arithmetic`.
        variant: the option of PCB.
    """

    kind: str
    drops: bool = False
    bands: bool = False
    ranked: str = ""
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

    `ranges` are `Numbers` from LEAST on.
    """

    weight: float = 1.0
    threshold: float = 0.0
    drop: Drop | None = None
    ranges: tuple[float, ...] = (0.0,) * 5


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


def plan_rule(method: str, tensors: RuleTensors, cosines: MutableMapping[str, float]) -> Plan | None:
    """The rule as a formula, or None where the method or its options have none: then it is merged eagerly.

    Args:
        cosines: tensor name -> the cosine between two sources: a cache that lives as long as the sources.

    Raises:
        MergeError: the parameters give no merge: weights that sum to zero are to be normalised.
    """
    path = METHODS[method].plan
    plan: Plan | None = None if path is None else load_function(path)(tensors, cosines)
    return plan


def same_for_all(weights: Sequence[float]) -> Callable[[str], list[Factors]]:
    """`Plan.factors` of a method with the same weights for every tensor."""
    factors = [Factors(weight) for weight in weights]
    return lambda name: factors


def pack(
    tensors: Sequence[Sequence[Factors]], scale: float = 1.0, zero_sign: float = 1.0, *, wide: bool = False
) -> tuple[Tensor, Tensor]:
    """`numbers` and `words` of several tensors, with one more dimension in front.

    Args:
        tensors: the factors of each tensor, one per source.
        wide: numbers in float64.

    Returns:
        float32 or float64 of shape (tensors, 12, sources) and int32 of shape (tensors, 4, sources), for the elements
        from index 0; `offset_words` gives the words of later ones.
    """
    undropped = Drop(0, 0.0)
    # By way of numpy, which reads nested lists several times faster.
    with np.errstate(over="ignore"):  # what is above the largest float32 is infinite, and refused when it is written
        numbers = np.array([_numbers(factors, undropped, scale, zero_sign) for factors in tensors])
        numbers = numbers.astype(np.float64 if wide else np.float32)
    words = np.zeros((len(tensors), len(Words), numbers.shape[-1]), dtype=np.int32)
    if any(factor.drop for factors in tensors for factor in factors):
        words[:] = [_words(factors, undropped) for factors in tensors]
    return torch.from_numpy(numbers), torch.from_numpy(words)


def _numbers(factors: Sequence[Factors], undropped: Drop, scale: float, zero_sign: float) -> list[Sequence[float]]:
    drops = [factor.drop or undropped for factor in factors]
    return [
        [factor.weight for factor in factors],
        [factor.threshold for factor in factors],
        [drop.divisor for drop in drops],
        [drop.factor for drop in drops],
        [scale] * len(factors),
        [zero_sign] * len(factors),
        [0.0] * len(factors),
        *zip(*(factor.ranges for factor in factors), strict=True),
    ]


def _words(factors: Sequence[Factors], undropped: Drop) -> list[list[int]]:
    drops = [factor.drop or undropped for factor in factors]
    keys = [index_words(drop.key, 0) for drop in drops]
    limits = [math.ceil(drop.drop_rate * (1 << 24)) for drop in drops]
    return [limits, [low for low, _, _ in keys], [high for _, high, _ in keys], [start for _, _, start in keys]]


def offset_words(words: Tensor, factors: Sequence[Factors], start: int) -> Tensor:
    """The words for a piece that begins at element `start`. A piece may not cross a multiple of 2**31."""
    if start == 0 or not any(factor.drop for factor in factors):
        return words
    keys = [index_words(factor.drop.key if factor.drop else 0, start) for factor in factors]
    rows = [[low for low, _, _ in keys], [high for _, high, _ in keys], [first for _, _, first in keys]]
    return torch.cat([words[: Words.KEY_LOW], torch.tensor(rows, dtype=torch.int32, device=words.device)])


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
        numbers: float32 (with statistics float64) of shape (12, sources), see `Numbers`.
        words: int32 of shape (4, sources), see `Words`.

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
        given = zip(vectors, statistics, strict=True)
        vectors = [_drop_by_rank(formula, *each, numbers[:, i], words[:, i]) for i, each in enumerate(given)]
        numbers = numbers.float()
    if formula.bands:
        vectors = [_band(vector, numbers[:, i]) for i, vector in enumerate(vectors)]
    if formula.kind == "sum":
        return _weighted_sum(vectors, numbers) + origin, None
    if formula.kind == "scaled":
        return _weighted_sum(vectors, numbers) * numbers[Numbers.LAMBDA, 0] + origin, None
    if formula.kind == "changes":
        return _merge_changes(vectors, numbers) + origin, None
    if formula.kind == "consensus":
        return _agree(vectors, numbers) + origin, None
    if formula.kind == "competition":
        return compete(formula.variant, vectors, numbers) + origin, None
    merged, votes = _elect(formula, vectors, numbers)
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
    """What `della.RankedDrop` leaves; the slope is in LEAST, the smallest probability in MOST."""
    slope, least = numbers[Numbers.LEAST], numbers[Numbers.MOST]
    bits = _random_bits(vector, words)
    return drop_by_rank(vector, ranks, bits, slope=slope, least=least, divided=formula.ranked == "1/p")


def _random_bits(vector: Tensor, words: Tensor) -> Tensor:
    indices = torch.arange(vector.shape[0], dtype=torch.int32, device=vector.device) + words[Words.START]
    return mixed_index(indices, words[Words.KEY_LOW], words[Words.KEY_HIGH])


def _band(vector: Tensor, numbers: Tensor) -> Tensor:
    """What `breadcrumbs.Band` leaves."""
    size = vector.abs()
    dropped = (size < numbers[Numbers.THRESHOLD]) | (size > numbers[Numbers.MOST])
    return torch.where(dropped, size * numbers[Numbers.ZERO], vector)


def _elect(formula: Formula, vectors: Sequence[Tensor], numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Trim, elect and merge as `ties.Election` does, for task vectors that are not trimmed yet."""
    weights, zero = numbers[Numbers.WEIGHT], numbers[Numbers.ZERO, 0]
    trimmed = [  # TIES (1)
        torch.where(vector.abs() < numbers[Numbers.THRESHOLD, i], zero, vector) for i, vector in enumerate(vectors)
    ]
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


def _limited_step(first: Tensor, second: Tensor, *, limit: Tensor) -> Tensor:
    """The element of `nearswap.merge_nearswap`."""
    step = second - first
    clipped = torch.where(step < -limit, -limit, torch.where(step > limit, limit, step))
    return torch.where(step.abs() <= limit, second, clipped + first)
