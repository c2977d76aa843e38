"""On how many items a candidate is scored: what `fidelity` of a spec means, as decisions after each block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evomerge.evaluation.evaluator import ItemBlock, Scores
from evomerge.objective import Objective
from evomerge.racing.brackets import BracketSettings, Rule, bracket, goes_on, rungs
from evomerge.racing.race import RaceSettings, decide, require_means
from evomerge.spec import FidelitySpec


@dataclass(frozen=True)
class Look:
    """A candidate after some of its blocks.

    Attributes:
        trial: its number.
        seen: its scores on all blocks so far.
        earlier: task -> items that had been seen, after each block before the last.
        incumbent: the best complete candidate, None before there is one.
        at_rung: items -> values of the candidates that were compared there before, by trial.
    """

    trial: int
    seen: Scores
    earlier: Sequence[Mapping[str, int]] = ()
    incumbent: Scores | None = None
    at_rung: Mapping[int, Mapping[int, float]] = field(default_factory=dict)

    @property
    def items(self) -> int:
        return sum(len(task.items) for task in self.seen.tasks.values())


@dataclass(frozen=True)
class Finding:
    """What a look has found.

    Attributes:
        drop: whether the rest of the items is not worth scoring.
        estimate: of the objective on all items: paired with the incumbent where there is one.
        rung: the number of items at which the candidate was compared with others by its `value` on them.
    """

    drop: bool
    estimate: float
    rung: int | None = None
    value: float | None = None


class Full:
    """Every candidate is scored on all items, at once."""

    def blocks(self, trial: int) -> Sequence[ItemBlock]:
        """The blocks of items that a trial is scored on, one after another."""
        return (ItemBlock("search"),)

    def look(self, look: Look) -> Finding:
        """What to do with a candidate after one of its blocks but the last."""
        raise AssertionError("there is only one block")


class Race(Full):
    """A candidate is dropped when it is clear that it is worse than the incumbent. Blocks hold a share of every task.

    Args:
        blocks: how many there are; no more than the largest task has items.
    """

    def __init__(self, settings: RaceSettings, objective: Objective, blocks: int) -> None:
        self._settings = settings
        self._objective = objective
        self._count = blocks

    def blocks(self, trial: int) -> Sequence[ItemBlock]:
        count = self._count
        return tuple(ItemBlock("search", number, number + 1, of=count) for number in range(count))

    def look(self, look: Look) -> Finding:
        if look.incumbent is None:
            return Finding(False, self._objective.value(look.seen))
        decision = decide(self._settings, self._objective, look.incumbent, look.seen, look.earlier)
        return Finding(decision.drop, decision.estimate)


class Brackets(Full):
    """A candidate goes on while it is among the best of those that were scored on as many items.

    What begins before there is an incumbent goes on to the end.
    """

    def __init__(self, settings: BracketSettings, objective: Objective) -> None:
        self._settings = settings
        self._objective = objective

    def blocks(self, trial: int) -> Sequence[ItemBlock]:
        total = self._settings.total
        stops = rungs(self._settings, trial)
        starts = (0, *stops[:-1])
        return tuple(ItemBlock("search", start, stop, of=total) for start, stop in zip(starts, stops, strict=True))

    def look(self, look: Look) -> Finding:
        value = self._objective.value(look.seen)
        # By the bracket's own number of items: what a share of every task comes to is rounded.
        rung = rungs(self._settings, look.trial)[len(look.earlier)]
        mine = bracket(self._settings, look.trial)
        others = [
            other
            for trial, other in look.at_rung.get(rung, {}).items()
            if bracket(self._settings, trial) == mine and trial != look.trial
        ]
        if look.incumbent is None:  # what a sampler would be told of it could not be ranked with full values
            return Finding(False, value, rung, value)
        paired = decide(RaceSettings(), self._objective, look.incumbent, look.seen, look.earlier)
        return Finding(not goes_on(value, others, self._settings.eta), paired.estimate, rung, value)


def build_fidelity(spec: FidelitySpec, objective: Objective, references: Sequence[Scores]) -> Full:
    """The fidelity of a spec.

    Args:
        references: scores of base and experts on all items of the search.

    Raises:
        InvalidInput: a metric whose parts cannot be compared.
    """
    if spec.name == "full":
        return Full()
    for reference in references:
        require_means(reference)
    sizes = [len(task.items) for task in references[0].tasks.values()]
    items = sum(sizes)
    if spec.name == "race":
        blocks = min(max(1, round(items / spec.block)), max(sizes))
        return Race(RaceSettings(spec.alpha, spec.minimum), objective, blocks)
    rule: Rule = "hyperband" if spec.name == "hyperband" else "successive_halving"
    return Brackets(BracketSettings(items, min(spec.minimum, items), spec.eta, rule), objective)
