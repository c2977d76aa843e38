"""The verdict as a note in Markdown: Optuna Dashboard shows it beside the study, and trackers beside a run."""

from __future__ import annotations

from evomerge.messages import counted, p_value
from evomerge.verdict.headline import headline
from evomerge.verdict.sentences import about, amount, sentence
from evomerge.verdict.verdict import Comparison, Verdict

COMPARISON_TITLES = (
    "winner against",
    "difference",
    "95 % interval",
    "p (corrected)",
    "test",
    "items that differ",
    "items needed",
    "outcome",
    "difference on the search items",
)


def markdown(verdict: Verdict) -> str:
    """The verdict as a note: the answer in one sentence, all of it, a table, and the gap of search and held-out."""
    answer = headline(verdict)
    parts = [f"## Verdict: {answer.belief}", f"**{answer.text}**", verdict.sentence or sentence(verdict)]
    if verdict.comparisons:
        titles = list(COMPARISON_TITLES)
        if verdict.margin is not None:
            titles.insert(COMPARISON_TITLES.index("test"), f"p (differs by {amount(verdict.margin, verdict.unit)})")
        rows = [_row(each, verdict) for each in verdict.comparisons]
        parts.append("\n".join([f"| {' | '.join(titles)} |", "|---" * len(titles) + "|", *rows]))
    if verdict.gap is not None:
        text = f"Search − held-out of the winner: {amount(verdict.gap, verdict.unit, signed=True)}"
        if verdict.reference_gap is not None and verdict.luck is not None:
            text += (
                f"; of rows that the search items did not choose: "
                f"{amount(verdict.reference_gap, verdict.unit, signed=True)}; the rest is luck: "
                f"{amount(verdict.luck, verdict.unit, signed=True)}"
            )
        parts.append(text + ".")
    parts.append(
        f"{counted(verdict.items, 'held-out item')}, compared one by one. An interval is of its difference alone; "
        "p-values are corrected for all comparisons of their look and for every look at these items, earlier and later "
        "ones."
    )
    return "\n\n".join(parts) + "\n"


def _row(comparison: Comparison, verdict: Verdict) -> str:
    nothing, unit = "–", verdict.unit
    interval = nothing
    if comparison.low is not None and comparison.high is not None:
        interval = f"{amount(comparison.low, unit, signed=True)} to {amount(comparison.high, unit, signed=True)}"
    search = comparison.search_difference
    cells = [
        comparison.name.replace("|", "\\|"),
        amount(comparison.difference, unit, signed=True),
        interval,
        p_value(comparison.adjusted_p),
        *([] if verdict.margin is None else [p_value(comparison.equivalence_p)]),
        comparison.test,
        f"{comparison.discordant:,} of {comparison.items:,}",
        nothing if comparison.items_needed is None else about(comparison.items_needed),
        "is beaten" if comparison.worse else comparison.outcome,
        nothing if search is None else amount(search, unit, signed=True),
    ]
    return f"| {' | '.join(cells)} |"
