"""Trials of a study, and the search itself, as trackers log them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from evomerge.spec import SearchSpec
from evomerge.storage import attributes
from evomerge.storage.attributes import read_document
from evomerge.study.trials import read_cost, value_of
from evomerge.telemetry.ended_trials import EndedTrial
from evomerge.telemetry.tracker import TrialEntry

_STATES: Final = {"COMPLETE": "complete", "PRUNED": "dropped", "FAIL": "failed"}


def trial_entry(ended: EndedTrial) -> TrialEntry:
    """A trial with its params, and with those of its numbers that are known and finite."""
    trial = ended.trial
    return TrialEntry(
        step=ended.step,
        number=trial.number,
        state=_STATES[trial.state.name],
        params=trial.params,
        metrics=_metrics(ended),
        reason=trial.user_attrs.get(attributes.FAILURE, ""),
    )


def _metrics(ended: EndedTrial) -> dict[str, float]:
    trial = ended.trial
    cost = asdict(read_cost(trial))
    del cost["candidates"]  # always one
    found: dict[str, float | None] = {
        "objective": value_of(trial),
        "best": ended.best,
        **{f"cost/{name}": value for name, value in cost.items()},
    }
    if attributes.SCORES in trial.user_attrs:
        scores = read_document(trial, attributes.SCORES)
        found["objective_stderr"] = scores["objective_stderr"]
        found |= {f"score/{task}": each["value"] for task, each in scores["tasks"].items()}
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def search_config(spec: SearchSpec) -> Mapping[str, Any]:
    """The subject of a search, in a few small values by which runs of a tracker can be told apart."""
    sampler = {f"sampler.{name}": value for name, value in spec.sampler.settings.items() if value is not None}
    return {
        "sources": ", ".join(source.name for source in spec.sources),
        "space": spec.search_space.name,
        "evaluator": spec.evaluator.name,
        "objective": spec.objective.aggregate,
        "sampler": spec.sampler.name,
        **sampler,
        "fidelity": spec.fidelity.name,
        "dtype": spec.dtype,
        "seed": spec.seed,
    }
