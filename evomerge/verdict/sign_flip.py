"""Exact tests for right and wrong answers, on the items that one of the two models alone has right.

If winner and baseline were equally good, each discordant item would be as likely to favour the one as the other, so
that the signs of the differences are fair coins. Where all items weigh the same that is McNemar's exact test; where
they do not (tasks of unequal size or weight), the same coins are thrown with unequal stakes. McNemar's test is in its
unconditional form.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import bdtr, bdtrc

from evomerge.evaluation.aggregates import FloatArray
from evomerge.seeding import derive
from evomerge.verdict import mcnemar

ENUMERATED: Final = 1_000_000  # combinations of coins that are summed over; more of them are sampled
DRAWS: Final = 99_999
TESTS: Final = ("McNemar", "sign flip")
_SAME: Final = 1e-9  # sums of stakes that differ by less, relatively, are ties


@dataclass(frozen=True, kw_only=True)
class Discordance:
    """The outcomes of one task, 0 or 1, of two models on the same items.

    Attributes:
        stake: what one item is worth in the objective: the task's share of it / its number of items. Positive.
        items: number of items.
        wins, losses: items on which only the first model, or only the second, does what the objective wants.
    """

    stake: float
    items: int
    wins: int
    losses: int

    @property
    def count(self) -> int:
        return self.wins + self.losses


def difference(tasks: Sequence[Discordance]) -> float:
    """The difference of the objective, first model − second."""
    return math.fsum(task.stake * (task.wins - task.losses) for task in tasks)


def sign_flip(tasks: Sequence[Discordance], seed: int) -> tuple[str, float]:
    """Two-sided p-value that the sign of every discordant item is a fair coin, with the name of the test.

    Summed over all combinations where there are not too many of them; else over random ones, keyed by `seed`, with
    p = (1 + hits) / (1 + draws) (Phipson & Smyth 2010), which is never 0 and keeps its level. Without a hit an upper
    bound of p may be smaller than that; no level that the draws can reach depends on it.
    """
    merged = merged_by_stake(tasks)
    if len(merged) == 1:
        return "McNemar", mcnemar.unconditional(merged[0].wins, merged[0].losses, merged[0].items)
    observed = abs(difference(merged))
    scale = math.fsum(task.stake * task.count for task in merged)
    threshold = observed - _SAME * scale
    if threshold <= 0:
        return "sign flip", 1.0
    *enumerated, largest = sorted(merged, key=lambda task: task.count)
    if math.prod(task.count + 1 for task in enumerated) <= ENUMERATED:
        return "sign flip", _summed(enumerated, largest, threshold)
    return "sign flip", _sampled(merged, threshold, seed)


def variances(tasks: Sequence[Discordance]) -> tuple[float, float]:
    """Variances of this difference: if the models were equally good, and as observed (Connor 1987, eq. 4)."""
    null = math.fsum(task.stake**2 * task.count for task in tasks)
    drift = math.fsum(task.stake**2 * (task.wins - task.losses) ** 2 / task.items for task in tasks)  # (eq. 4)
    return null, max(0.0, null - drift)


def merged_by_stake(tasks: Sequence[Discordance]) -> list[Discordance]:
    """The tasks, those whose items are worth the same joined to one."""
    groups: dict[float, list[Discordance]] = defaultdict(list)
    for task in tasks:
        known = next((stake for stake in groups if math.isclose(stake, task.stake, rel_tol=_SAME)), task.stake)
        groups[known].append(task)
    return [
        Discordance(
            stake=stake,
            items=sum(task.items for task in group),
            wins=sum(task.wins for task in group),
            losses=sum(task.losses for task in group),
        )
        for stake, group in groups.items()
    ]


def _summed(enumerated: Sequence[Discordance], largest: Discordance, threshold: float) -> float:
    """P(|sum| >= threshold), by every combination of the other tasks' coins and the binomial tail of the largest."""
    sums, chances = np.zeros(1), np.ones(1)
    for task in enumerated:
        heads = np.arange(task.count + 1)
        sums = np.add.outer(sums, task.stake * (2 * heads - task.count)).ravel()
        chances = np.multiply.outer(chances, _chances(task.count)).ravel()
    # heads of the largest task that reach the threshold from above; the other side is the same by symmetry
    needed = np.ceil((largest.count + (threshold - sums) / largest.stake) / 2)
    tail = bdtrc(np.arange(-1, largest.count + 1), largest.count, 0.5)  # P(heads >= 0), P(heads >= 1), …
    tail[0], tail[-1] = 1.0, 0.0
    reached = tail[np.clip(needed, 0, largest.count + 1).astype(np.int64)]
    return min(1.0, 2 * float(chances @ reached))


def _chances(count: int) -> FloatArray:
    """P(heads = 0), P(heads = 1), … of `count` fair coins."""
    below: FloatArray = bdtr(np.arange(count + 1), count, 0.5)
    half = np.diff(below, prepend=0.0)[: count // 2 + 1]  # the lower half, where the differences lose no digits
    return np.concatenate([half, half[: (count + 1) // 2][::-1]])


def _sampled(tasks: Sequence[Discordance], threshold: float, seed: int) -> float:
    """P(|sum| >= threshold) by random coins; Hoeffding's bound of it (1963, theorem 2) where none of them reach it."""
    generator = np.random.Generator(np.random.Philox(derive(seed, "sign flip")))
    sums = np.zeros(DRAWS)
    for task in tasks:
        sums += task.stake * (2 * generator.binomial(task.count, 0.5, DRAWS) - task.count)
    hits = int(np.count_nonzero(np.abs(sums) >= threshold))
    sampled = (1 + hits) / (1 + DRAWS)
    if hits:
        return sampled
    squares = math.fsum(task.stake**2 * task.count for task in tasks)
    return min(sampled, 2 * math.exp(-(threshold**2) / (2 * squares)))
