"""Experiment trackers: the values that they log, and the four calls that each of them implements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

EndState = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """The run of a tracker that a search is logged to, by all its runs here.

    Attributes:
        id: kept in the study; a run that has it already is continued.
        study: name of the search.
        config: what the search is about, in small values: sources, space, evaluator, sampler, seed.
    """

    id: str
    study: str
    config: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrialEntry:
    """A trial that has ended.

    Attributes:
        step: position among the ended trials of the study, from 0; it never falls.
        number: of the trial.
        state: "complete", "dropped" or "failed".
        params: of the trial, numbers and categories.
        metrics: name -> finite number: "objective", "objective_stderr", "best", "score/TASK", "cost/KIND".
        reason: of a failure; empty where there is none.
    """

    step: int
    number: int
    state: str
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """The result of a search.

    Attributes:
        headline: the verdict in one sentence.
        belief: whether to believe it, in a few words.
        note: the verdict in full, in Markdown.
        columns, rows: the leaderboard, the best on the held-out items first; None where a value is not known.
    """

    headline: str
    belief: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | None]]


class Tracker(Protocol):
    """A client of an experiment tracker. It runs in a process of its own; each call may raise anything and may hang."""

    def open(self, run: TrackedRun) -> None:
        """Begin or continue the run of this id. Called again after a minute where it has raised."""
        ...

    def log(self, entry: TrialEntry) -> None:
        """Log a trial."""
        ...

    def conclude(self, finding: Conclusion) -> None:
        """Log the result, in the place of an earlier one."""
        ...

    def close(self, state: EndState) -> None:
        """End the run, which a later one may continue. No call follows."""
        ...
