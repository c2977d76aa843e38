"""Brackets: at fixed numbers of items only the best of the candidates that got there continue.

Values at one rung are all of the same items, so that they can be ranked with each other, and never with those at
another rung. The bracket of a candidate depends on its number alone, so that a search which is resumed repeats it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from evomerge.errors import InvalidInput, unknown_name
from evomerge.packs.items import ItemBlock

BracketKind = Literal["successive_halving", "hyperband"]
BRACKET_KINDS: tuple[BracketKind, ...] = ("successive_halving", "hyperband")


@dataclass(frozen=True, kw_only=True)
class BracketSettings:
    """The rungs, and the share of candidates that survives each.

    Attributes:
        total: items of a complete candidate.
        minimum: items at the first rung.
        eta: one of eta candidates continues, to eta times as many items.
        kind: successive_halving, where all start at the first rung, or hyperband, where some start higher.
        tasks: items of each task; empty for one task that has all.
    """

    total: int
    minimum: int = 64
    eta: int = 3
    kind: BracketKind = "successive_halving"
    tasks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in BRACKET_KINDS:
            raise unknown_name("kind of bracket", self.kind, BRACKET_KINDS)
        if self.eta < 2:
            raise InvalidInput(
                f"eta must be 2 or more, so that fewer candidates continue at each rung, but is {self.eta}"
            )
        if not 1 <= self.minimum <= self.total:
            raise InvalidInput(f"the first rung must have 1 to {self.total} items, but has {self.minimum}")
        if self.tasks and sum(self.tasks) != self.total:
            raise InvalidInput(f"the tasks have {sum(self.tasks)} items together, but total is {self.total}")

    @cached_property
    def ladder(self) -> tuple[int, ...]:
        """minimum · eta^k below the total, and the total.

        A rung takes the same share of every task, rounded up. One that adds no item to the rung below, or that has all
        items already, is left out.
        """
        rungs: list[int] = []
        before: tuple[int | None, ...] = ()
        everything = self._taken(self.total)
        items = self.minimum
        while items < self.total and (taken := self._taken(items)) != everything:
            if taken != before:
                rungs.append(items)
            before = taken
            items *= self.eta
        return (*rungs, self.total)

    def _taken(self, items: int) -> tuple[int | None, ...]:
        """Items of each task at a rung."""
        block = ItemBlock("search", 0, items, of=self.total)
        return tuple(block.positions(size)[1] for size in self.tasks or (self.total,))


def rungs(settings: BracketSettings, trial: int) -> tuple[int, ...]:
    """Numbers of items at which a trial is compared with others; the last is all of them, where it is complete."""
    return settings.ladder[bracket(settings, trial) :]


def bracket(settings: BracketSettings, trial: int) -> int:
    """Number of rungs that a trial skips at the start.

    Of hyperband, the brackets of Li et al. (2018, algorithm 1) with their numbers of candidates, the most thrifty first
    and from the first again after the last: ⌈(s_max + 1) / (s + 1) · eta^s⌉ where s rungs are above the first of the
    bracket.
    """
    if settings.kind == "successive_halving":
        return 0
    most = len(settings.ladder) - 1
    sizes = [_starting(most, above, settings.eta) for above in range(most, -1, -1)]
    place = trial % sum(sizes)
    for skipped, size in enumerate(sizes):
        if place < size:
            return skipped
        place -= size
    raise AssertionError("the place is within the sum of the sizes")


def survives_rung(value: float, at_rung: Sequence[float], eta: int) -> bool:
    """Whether a candidate is among the best 1 / eta at a rung: asynchronous successive halving (ASHA, Li et al., 2020).

    Decided at once, from the candidates that got there before: none waits, and one that is dropped is not called back
    when later ones are worse. While fewer than eta got there, the best so far continues. Ties continue.

    Args:
        value: objective on the items of the rung; NaN does not continue.
        at_rung: values there of the other candidates of the bracket which reached the rung before.
    """
    if math.isnan(value):
        return False
    ranked = sorted((other for other in [*at_rung, value] if not math.isnan(other)), reverse=True)
    return value >= ranked[max(1, len(ranked) // eta) - 1]


def smac_brackets(minimum: float, maximum: float, eta: int = 3) -> list[list[tuple[int, float]]]:
    """The brackets of Hyperband as SMAC runs them: (configurations, items) from the first rung of each to its last.

    Items are counted down from the maximum by eta and are not rounded, so that the lowest rung is seldom the minimum.
    There are s_max + 1 brackets with s_max = ⌊log(maximum / minimum) / log(eta)⌋, from the longest to the single rung.
    The arithmetic is in floating point as there: a maximum of 243 times the minimum gives five brackets for eta = 3,
    not six; and a rung whose configurations would be exactly 1 may have 0, as the last one of seven for eta = 3.

    Raises:
        InvalidInput: not 0 < minimum <= maximum, or eta below 2.
    """
    if isinstance(eta, bool) or not isinstance(eta, int) or eta < 2:
        raise InvalidInput(f"eta must be an integer of 2 or more, but is {eta!r}")
    if not 0 < minimum <= maximum < math.inf:
        raise InvalidInput(f"items must satisfy 0 < minimum <= maximum, but minimum is {minimum} and maximum {maximum}")
    most = math.floor(math.log(maximum / minimum) / math.log(eta))
    return [
        [
            (math.floor(_starting(most, above, eta) * float(eta) ** -rung), maximum * float(eta) ** (rung - above))
            for rung in range(above + 1)
        ]
        for above in range(most, -1, -1)
    ]


def _starting(most: int, above: int, eta: int) -> int:
    """Configurations that start in the bracket with `above` rungs above its first: ⌈(s_max + 1) / (s + 1) · eta^s⌉."""
    return math.ceil((most + 1) * int(eta**above) / (above + 1))
