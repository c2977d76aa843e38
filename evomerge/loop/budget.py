"""When a search ends, and how long that will take: the budget of a spec against what has been spent."""

from __future__ import annotations

from dataclasses import dataclass

from evomerge.spec import BudgetSpec
from evomerge.study.search_study import SearchStudy


@dataclass(frozen=True)
class Spent:
    """What the runs of a study have used so far. `trials` counts those in flight too, the others finished ones; `best`
    is None while no trial meets all constraints."""

    trials: int
    hours: float
    items: int
    tokens: int
    since_best: int
    best: float | None


def spent_by(search: SearchStudy, in_flight: int, run_seconds: float) -> Spent:
    """What a search has used, after `run_seconds` of running summed over all its runs."""
    return Spent(
        trials=search.finished + in_flight,
        hours=run_seconds / 3600,
        items=search.spent.items,
        tokens=search.spent.forward_tokens,
        since_best=search.since_best,
        best=search.best[0] if search.best and search.is_best_feasible else None,
    )


def reached(budget: BudgetSpec, spent: Spent) -> str | None:
    """The part of the budget that is spent, in words; None while there is some of all left."""
    if budget.target is not None and spent.best is not None and spent.best >= budget.target:
        return f"the target of {budget.target:g} was reached"
    if budget.patience is not None and spent.best is not None and spent.since_best >= budget.patience:
        return f"no better one was found in {spent.since_best} trials"
    for name, limit, used in _limits(budget, spent):
        if limit is not None and used >= limit:
            return f"the budget of {limit:,g} {name} is spent"
    return None


def share(budget: BudgetSpec, spent: Spent) -> float:
    """The share of the budget that is spent: that of the part which will be spent first. Patience and target cannot be
    foreseen."""
    return min(1.0, max(used / limit for _, limit, used in _limits(budget, spent) if limit is not None))


def _limits(budget: BudgetSpec, spent: Spent) -> tuple[tuple[str, float | None, float], ...]:
    return (
        ("trials", budget.trials, spent.trials),
        ("hours", budget.hours, spent.hours),
        ("items", budget.items, spent.items),
        ("tokens", budget.tokens, spent.tokens),
    )
