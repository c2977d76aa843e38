"""Two studies side by side: what each found, and whether their scores can be compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from evomerge.leaderboard import Line
from evomerge.page.page_content import PageContent
from evomerge.page.page_tables import Cell, PageTable
from evomerge.study.identity import read_identity
from evomerge.study.stored_search import StoredSearch

_NOTHING = "–"


@dataclass(frozen=True)
class StudyComparison:
    """The table of two studies, and a sentence on how far it may be read."""

    table: PageTable
    text: str


def study_comparison(
    one: StoredSearch, other: StoredSearch, content: PageContent, further: PageContent
) -> StudyComparison:
    """The findings of two studies.

    Args:
        content, further: of the pages of the two.
    """
    names = [content.name, further.name if further.name != content.name else f"{further.name} (the other)"]
    rows = [(Cell(title), Cell(show(content)), Cell(show(further))) for title, show in _ROWS.items()]
    table = PageTable(name="comparison", title=f"Compared with {names[1]}", columns=("", *names), rows=tuple(rows))
    return StudyComparison(table, _sentence(one, other, content, further))


def obstacle(one: StoredSearch, other: StoredSearch) -> str:
    """The reason why objectives of two studies cannot be compared, in a sentence; empty where they can."""
    identities = [read_identity(stored.study) for stored in (one, other)]
    if _differ(each.split for each in identities):
        return "The two were scored on different items: their scores cannot be compared, only their leads and costs."
    if _differ(each.identity["evaluator"] for each in identities):  # a path says nothing of what is in the folder
        return (
            "The two were scored by different evaluators (tasks, data, seed or engine): their scores cannot be "
            "compared, only their leads and costs."
        )
    if one.spec.objective != other.spec.objective:
        return "The two have different objectives: compare tasks, not the objective."
    if one.spec.objective.normalise == "sources" and _differ(
        sorted(each.identity["sources"].values()) for each in identities
    ):
        return "0 and 1 are each one's own sources, and these differ: compare tasks, not the objective."
    return ""


def _sentence(one: StoredSearch, other: StoredSearch, content: PageContent, further: PageContent) -> str:
    if reason := obstacle(one, other):
        return reason
    mine, theirs = _best(content), _best(further)
    if mine is None or theirs is None or mine.held_out is None or theirs.held_out is None:
        return "The two have the same items; their best can be compared when both have a verdict."
    difference = mine.held_out.value - theirs.held_out.value
    text = (
        f"On the same held-out items the best of {content.name} is {abs(difference):.3f} "
        f"{'above' if difference >= 0 else 'below'} that of {further.name}"
    )
    if mine.held_out.stderr is not None and theirs.held_out.stderr is not None:
        error = math.hypot(mine.held_out.stderr, theirs.held_out.stderr)
        text += f", where chance alone makes about {error:.3f}"
    return f"{text}. That is no paired test: it does not look at which items differ."


def _differ(values: Iterable[object]) -> bool:
    one, other = values
    return one != other


def _best(content: PageContent) -> Line | None:
    return next((line for line in content.lines if line.kind == "best"), None)


def _value(part: str) -> Callable[[PageContent], str]:
    def show(content: PageContent) -> str:
        best = _best(content)
        found = None if best is None else best.held_out if part == "held-out" else best.search
        if found is None:
            return _NOTHING
        return f"{found.value:.3f}" + ("" if found.stderr is None else f" ± {found.stderr:.3f}")

    return show


def _forwards(content: PageContent) -> str:
    best = _best(content)
    return _NOTHING if best is None or best.forwards is None else f"{best.forwards:,.0f}"


def _verdict(content: PageContent) -> str:
    return content.headline.belief


def _strongest(content: PageContent) -> str:
    against = content.headline.against
    return _NOTHING if against is None else against.name


_ROWS: dict[str, Callable[[PageContent], str]] = {
    "verdict": _verdict,
    "held-out score of the best": _value("held-out"),
    "search score of the best": _value("search"),
    "strongest it was compared with": _strongest,
    "forwards spent": _forwards,
    "state": lambda content: content.state,
}
