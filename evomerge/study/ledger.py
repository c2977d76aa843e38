"""The ledger of a search: the state that it is in, and what its own trials and measurements have cost so far."""

from __future__ import annotations

from dataclasses import dataclass

import optuna

from evomerge.jobs import Cost
from evomerge.study.snapshot import SearchSnapshot, snapshot_of
from evomerge.study.study_statistics import read_statistics
from evomerge.study.trials import total_cost


@dataclass(frozen=True)
class SearchLedger:
    """State of a search, cost of all its trials, and cost of the statistics that were measured for them."""

    standing: SearchSnapshot
    trials: Cost
    measured: Cost


def ledger_of(study: optuna.Study) -> SearchLedger:
    """The ledger of a search as its study has it."""
    return SearchLedger(snapshot_of(study), total_cost(study.get_trials(deepcopy=False)), read_statistics(study).cost)
