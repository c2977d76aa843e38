"""The budget of a search against what all its runs have spent: when the search ends, and the share that is spent."""

from __future__ import annotations

import math
from dataclasses import dataclass

from evomerge.clock import SYSTEM_CLOCK, Clock
from evomerge.loop.outlook import Bar, chance_to_pass
from evomerge.messages import counted, plain_score
from evomerge.spec import BudgetSpec
from evomerge.storage import attributes
from evomerge.storage.optuna_internals import is_stopped
from evomerge.study.search_study import SearchStudy
from evomerge.study.status import status_of


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Resources that the runs of a study have used so far. `trials` counts those in flight too, the others finished
    ones; `best` is None while no trial meets all constraints."""

    trials: int
    hours: float
    items: int
    tokens: int
    since_best: int
    best: float | None


class BudgetAccount:
    """The budget of a study, and what its runs have spent of it, this one included.

    Args:
        bar: the best baseline that was scored before the search, which it is to pass.
    """

    def __init__(
        self, budget: BudgetSpec, search: SearchStudy, bar: Bar | None = None, *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self.budget = budget
        self._clock = clock
        self.bar = bar
        self._study = search.study
        self._tally = search.tally
        self._started = self._clock.monotonic()
        self._rested = 0.0
        self._resting_since: float | None = None
        content = search.study.user_attrs.get(attributes.STATUS)
        self._before = 0.0 if content is None else status_of(content).run_seconds

    @property
    def elapsed(self) -> float:
        """Seconds of this run, without those in which it rested."""
        now = self._clock.monotonic() if self._resting_since is None else self._resting_since
        return now - self._started - self._rested

    def rest(self, resting: bool) -> None:
        """Stop the clock while a paused search has nothing in flight, and let it go on afterwards."""
        now = self._clock.monotonic()
        if resting and self._resting_since is None:
            self._resting_since = now
        elif not resting and self._resting_since is not None:
            self._rested += now - self._resting_since
            self._resting_since = None

    @property
    def run_seconds(self) -> float:
        """Seconds of all runs of the study together."""
        return self._before + self.elapsed

    @property
    def share(self) -> float:
        """Share of the budget that finished trials have spent: that of the limit which will be reached first. Patience
        and target cannot be foreseen."""
        limits = _limits(self.budget, self.spent())
        return min(1.0, max(used / limit for _, limit, used in limits if limit is not None))

    @property
    def chance(self) -> float | None:
        """The chance that what is left passes the bar; None without a bar, and while there are too few candidates.

        It follows from the study alone, so that every run of it decides alike: hours are not looked at.
        """
        if self.bar is None:
            return None
        tally, spent = self._tally, self.spent()
        left = [self.budget.trials - spent.trials]
        for _, limit, used in _limits(self.budget, spent)[2:]:
            if limit is not None and used:
                left.append(math.ceil((limit - used) / used * spent.trials))
        return chance_to_pass(tally.values, self.bar.value, min(left))

    def spent(self, in_flight: int = 0) -> Spent:
        """All that has been used, after `in_flight` trials more have begun."""
        tally = self._tally
        return Spent(
            trials=tally.finished + in_flight,
            hours=self.run_seconds / 3600,
            items=tally.spent.items,
            tokens=tally.spent.forward_tokens,
            since_best=tally.since_best,
            best=tally.best[0] if tally.best and tally.is_best_feasible else None,
        )

    def ended(self, in_flight: int) -> str | None:
        """The limit that finished trials and those in flight exhaust, or futility, or a callback that has called
        `study.stop()`, in words; None while there is room and hope."""
        if is_stopped(self._study):
            return "a callback stopped the search"
        return reached(self.budget, self.spent(in_flight)) or self._futility()

    def _futility(self) -> str | None:
        if self.budget.futility is None or self.bar is None:
            return None
        chance = self.chance
        if chance is None or chance >= self.budget.futility:
            return None
        return (
            f"it is futile to go on: the chance to pass {self.bar.label} ({plain_score(self.bar.value)}) with "
            f"the rest of the budget is below {self.budget.futility:g}"
        )

    def has_room(self, in_flight: int) -> bool:
        """Whether an interrupted trial is scored again. Only the limits of trials and hours apply: the original run
        would have finished it."""
        limits = BudgetSpec(trials=self.budget.trials, hours=self.budget.hours)
        return reached(limits, self.spent(in_flight)) is None


def reached(budget: BudgetSpec, spent: Spent) -> str | None:
    """The part of the budget that is spent, in words; None while there is some of all left."""
    if budget.target is not None and spent.best is not None and spent.best >= budget.target:
        return f"the target of {budget.target:g} was reached"
    if budget.patience is not None and spent.best is not None and spent.since_best >= budget.patience:
        return f"no better one was found in {counted(spent.since_best, 'trial')}"
    for name, limit, used in _limits(budget, spent):
        if limit is not None and used >= limit:
            return f"the budget of {limit:,g} {name} is spent"
    return None


def _limits(budget: BudgetSpec, spent: Spent) -> tuple[tuple[str, float | None, float], ...]:
    return (
        ("trials", budget.trials, spent.trials),
        ("hours", budget.hours, spent.hours),
        ("items", budget.items, spent.items),
        ("tokens", budget.tokens, spent.tokens),
    )
