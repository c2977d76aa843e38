"""The cost of a search: of its trials, and of all that was measured and built before the first of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from evomerge.baselines.freshness import current_baselines
from evomerge.baselines.info import BASELINES
from evomerge.jobs import Cost
from evomerge.spec import SearchSpec
from evomerge.study.ledger import SearchLedger
from evomerge.study.rows import Record


def built_before(spec: SearchSpec) -> set[str]:
    """The baselines without which a search cannot begin: its space is made of them, or it starts from them."""
    if spec.warm_start.baselines or spec.needs_reference_points:
        return {each.name for each in spec.chosen_baselines if BASELINES[each.name].one_model_before}
    begin = spec.warm_start.begin
    return {*_names_of_space(spec), *([] if begin is None else [begin])}


def search_cost(spec: SearchSpec, ledger: SearchLedger, rows: Iterable[Record]) -> Cost:
    """The cost of a search so far, as every row has it that is its result or is made from that.

    Args:
        rows: of the baselines.
    """
    return ledger.trials + cost_before(spec, ledger, rows)


def cost_before(spec: SearchSpec, ledger: SearchLedger, rows: Iterable[Record]) -> Cost:
    """The part of it that was spent before the first trial."""
    return ledger.measured + _cost_of(built_before(spec), spec, ledger, rows)


def cost_of_space(spec: SearchSpec, ledger: SearchLedger, rows: Iterable[Record]) -> Cost:
    """The cost of the statistics and the merges that the space is made of, whatever its sampler starts from."""
    return ledger.measured + _cost_of(_names_of_space(spec), spec, ledger, rows)


def _names_of_space(spec: SearchSpec) -> set[str]:
    return {each.name for each in spec.space_baselines}


def _cost_of(names: Collection[str], spec: SearchSpec, ledger: SearchLedger, rows: Iterable[Record]) -> Cost:
    current = current_baselines(rows, spec, ledger.standing) if names else []
    return sum((row.cost for row in current if row.label in names), Cost())
