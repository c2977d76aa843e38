"""Fidelity: the number of items that a candidate is scored on, decided again after each block of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from evomerge.evaluation.scores import Scores
from evomerge.objective import Objective
from evomerge.packs.items import ItemBlock
from evomerge.racing.brackets import BracketKind, BracketSettings, bracket, rungs, survives_rung
from evomerge.racing.difference import DifferenceSettings, decide_by_difference
from evomerge.racing.draw import Draw, make_draw
from evomerge.racing.item_history import ItemHistory
from evomerge.racing.race import RaceSettings, decide, require_means
from evomerge.spec import FidelitySpec
from evomerge.study.race_defaults import RaceDefaults


@dataclass(frozen=True, kw_only=True)
class InterimLook:
    """A candidate after some of its blocks.

    Attributes:
        trial: its number.
        seen: its scores on all blocks so far.
        earlier: task -> items that had been seen, after each block before the last.
        incumbent: scores of the best complete candidate, None before there is one.
        at_rung: items -> values of the candidates that were compared there before, by trial.
        draw: its items, where they were drawn for it.
    """

    trial: int
    seen: Scores
    earlier: Sequence[Mapping[str, int]] = ()
    incumbent: Scores | None = None
    at_rung: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    draw: Draw | None = None

    @property
    def items(self) -> int:
        """Items seen so far, of all tasks."""
        return sum(len(task.items) for task in self.seen.tasks.values())


@dataclass(frozen=True, kw_only=True)
class LookResult:
    """Decision of an interim look: drop the candidate, or continue with this estimate.

    Attributes:
        drop: whether the rest of the items is not worth scoring.
        estimate: of the objective on all items: paired with the incumbent where there is one. NaN where the scores
            allow none.
        rung: the number of items at which the candidate was compared with others by its `value` on them.
    """

    drop: bool
    estimate: float
    rung: int | None = None
    value: float | None = None


class Fidelity(Protocol):
    """Decides on how many items each candidate is scored. A pure function of the scores, so that a search which is
    resumed decides as it did before."""

    @property
    def needs_incumbent(self) -> bool:
        """Whether candidates are compared with the best complete one, so that the study must keep its outcomes."""

    @property
    def needs_history(self) -> bool:
        """Whether the outcomes of earlier candidates are asked for."""

    def draw(self, trial: int, incumbent: Scores | None, history: ItemHistory) -> Draw | None:
        """The items of a trial that begins now, where they are drawn; else it has the same `blocks` as others."""

    def blocks(self, trial: int) -> Sequence[ItemBlock]:
        """The blocks of items that a trial is scored on, one after another, where none are drawn for it."""

    def look(self, look: InterimLook) -> LookResult:
        """Decide about a candidate after one of its blocks but the last."""


class _AlikeForAll:
    """Base of the fidelities by which all candidates have the same blocks."""

    needs_history = False

    def draw(self, trial: int, incumbent: Scores | None, history: ItemHistory) -> Draw | None:
        return None


class Full(_AlikeForAll):
    """Every candidate is scored on all items, in one block."""

    needs_incumbent = False

    def __init__(self, objective: Objective) -> None:
        self._objective = objective

    def blocks(self, trial: int) -> Sequence[ItemBlock]:
        return (ItemBlock("search"),)

    def look(self, look: InterimLook) -> LookResult:
        return LookResult(drop=False, estimate=self._objective.value_or_nan(look.seen))


class Race(_AlikeForAll):
    """A candidate is dropped when it is clear that it is worse than the incumbent. Blocks have a share of every task.

    Args:
        blocks: their number; no more than the largest task has items.
    """

    needs_incumbent = True

    def __init__(self, settings: RaceSettings, objective: Objective, *, blocks: int) -> None:
        self._settings = settings
        self._objective = objective
        self._count = blocks

    def blocks(self, trial: int) -> Sequence[ItemBlock]:
        count = self._count
        return tuple(ItemBlock("search", number, number + 1, of=count) for number in range(count))

    def look(self, look: InterimLook) -> LookResult:
        if look.incumbent is None:
            return LookResult(drop=False, estimate=self._objective.value_or_nan(look.seen))
        decision = decide(
            self._settings, self._objective, incumbent=look.incumbent, seen=look.seen, earlier=look.earlier
        )
        return LookResult(drop=decision.drop, estimate=decision.estimate)


class DifferenceRace:
    """A race on items that are drawn for each candidate, with predictions of its outcomes. See `difference.py`.

    A candidate that begins before there is an incumbent is scored on all items.

    Args:
        seed: of the study; with the number of a trial it keys the draw of its items.
    """

    needs_incumbent = True
    needs_history = True

    def __init__(
        self, settings: DifferenceSettings, objective: Objective, *, minimum: int, block: int, seed: int
    ) -> None:
        self._settings = settings
        self._objective = objective
        self._minimum = minimum
        self._block = block
        self._seed = seed

    def draw(self, trial: int, incumbent: Scores | None, history: ItemHistory) -> Draw | None:
        if incumbent is None:
            return None
        return make_draw(
            self._objective,
            incumbent,
            history,
            seed=self._seed,
            trial=trial,
            minimum=self._minimum,
            block=self._block,
        )

    def blocks(self, trial: int) -> Sequence[ItemBlock]:
        return (ItemBlock("search"),)

    def look(self, look: InterimLook) -> LookResult:
        if look.draw is None:
            return LookResult(drop=False, estimate=self._objective.value_or_nan(look.seen))
        decision = decide_by_difference(self._settings, look.draw, look.seen, block=len(look.earlier))
        return LookResult(drop=decision.drop, estimate=decision.estimate)


class Brackets(_AlikeForAll):
    """A candidate continues while it is among the best of those that were scored on as many items.

    A candidate that begins before there is an incumbent is scored on all items.
    """

    needs_incumbent = True

    def __init__(self, settings: BracketSettings, objective: Objective) -> None:
        self._settings = settings
        self._objective = objective

    def blocks(self, trial: int) -> Sequence[ItemBlock]:
        total = self._settings.total
        stops = rungs(self._settings, trial)
        starts = (0, *stops[:-1])
        return tuple(ItemBlock("search", start, stop, of=total) for start, stop in zip(starts, stops, strict=True))

    def look(self, look: InterimLook) -> LookResult:
        value = self._objective.value_or_nan(look.seen)
        if math.isnan(value):  # of a collapsed merge
            return LookResult(drop=True, estimate=value)
        # By the bracket's own number of items: the items in a share of every task are rounded.
        rung = rungs(self._settings, look.trial)[len(look.earlier)]
        mine = bracket(self._settings, look.trial)
        others = [
            other
            for trial, other in look.at_rung.get(rung, {}).items()
            if bracket(self._settings, trial) == mine and trial != look.trial
        ]
        if look.incumbent is None:  # an estimate without an incumbent could not be ranked with full values
            return LookResult(drop=False, estimate=value, rung=rung, value=value)
        paired = decide(RaceSettings(), self._objective, incumbent=look.incumbent, seen=look.seen, earlier=look.earlier)
        drop = not survives_rung(value, others, self._settings.eta)
        return LookResult(drop=drop, estimate=paired.estimate, rung=rung, value=value)


def build_fidelity(
    spec: FidelitySpec, objective: Objective, references: Sequence[Scores], *, race: RaceDefaults, seed: int
) -> Fidelity:
    """The fidelity of a spec.

    Args:
        references: scores of base and experts on all items of the search.
        race: the study's settings in place of those that the spec leaves open.
        seed: of the study.

    Raises:
        InvalidInput: a metric whose parts cannot be compared.
    """
    if spec.name == "full":
        return Full(objective)
    require_means(references)
    sizes = [len(task.items) for task in references[0].tasks.values()]
    items = sum(sizes)
    if spec.name == "race" and (spec.estimator or race.estimator) == "difference":
        futility = race.futility if spec.futility is None else spec.futility
        drawn = DifferenceSettings(alpha=spec.alpha, futility=futility)
        return DifferenceRace(drawn, objective, minimum=spec.minimum, block=spec.block, seed=seed)
    if spec.name == "race":
        blocks = min(max(1, round(items / spec.block)), max(sizes))
        return Race(RaceSettings(spec.alpha, spec.minimum), objective, blocks=blocks)
    kind: BracketKind = "hyperband" if spec.name == "hyperband" else "successive_halving"
    minimum = min(spec.minimum, items)
    settings = BracketSettings(total=items, minimum=minimum, eta=spec.eta, kind=kind, tasks=tuple(sizes))
    return Brackets(settings, objective)
