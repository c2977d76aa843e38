"""The verdict in one sentence: what won, by how much, and whether to believe it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from evomerge.messages import p_value
from evomerge.verdict.sentences import about, amount
from evomerge.verdict.verdict import Comparison, Unit, Verdict

Belief = Literal["believe it", "cannot be told", "nothing gained", "not sane", "not known yet"]

NOT_SANE: Final[Belief] = "not sane"
NOT_YET: Final[Belief] = "not known yet"


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The sentence of a verdict, and whether the winner's lead can be believed.

    Attributes:
        against: the comparison that it is about; None where there is none.
    """

    text: str
    belief: Belief
    against: Comparison | None = None


def headline(verdict: Verdict) -> Headline:
    """The sentence on the winner against the strongest of what it was compared with, one model where there is one.

    Of a winner that is one of the merges which the space is made of, that is said first: the search gained nothing.
    A winner with faults in its sanity probe is named with them first, and not to be believed.
    """
    found = _compared(verdict)
    if not verdict.warning:
        return found
    return replace(found, text=f"{verdict.warning} {found.text.replace(': believe it (', ' (')}", belief=NOT_SANE)


def _compared(verdict: Verdict) -> Headline:
    """The headline by the scores alone."""
    one_model = [each for each in verdict.comparisons if each.models == 1]
    subject = verdict.winner.capitalize()
    if verdict.is_corner:
        subject = f"{subject} is “{verdict.corner}” itself, the search found nothing better; it"
    if not verdict.comparisons:
        return Headline(text=f"{subject} was compared with nothing on the held-out items.", belief=NOT_YET)
    hardest = min(one_model or verdict.comparisons, key=lambda each: each.difference)
    unseen = f"{verdict.items:,} items that the search never saw"
    other, lead = _described(hardest, verdict), _lead(hardest, verdict.unit)
    before_colon = other.removesuffix(",")
    corrected = f"p = {p_value(hardest.adjusted_p)}, corrected".replace("= <", "<")
    if hardest.discordant == 0:
        return _headline(f"{subject} has the same outcomes as {other} on all {unseen}.", "nothing gained", hardest)
    if hardest.outcome == "beats":
        return _headline(
            f"{subject} beats {other} by {lead} on {unseen}: believe it ({corrected}).", "believe it", hardest
        )
    if hardest.worse:
        return _headline(
            f"{subject} is beaten by {other} by {lead} on {unseen}: take {hardest.baseline} ({corrected}).",
            "nothing gained",
            hardest,
        )
    if hardest.outcome == "equivalent":
        within = amount(verdict.margin or 0.0, verdict.unit)
        return _headline(
            f"{subject} is equivalent to {before_colon}: on {unseen} they differ by less than {within}.",
            "nothing gained",
            hardest,
        )
    if hardest.difference == 0:
        return _headline(f"{subject} scores the same as {other} on {unseen}.", "nothing gained", hardest)
    if hardest.outcome == "does not beat":
        return _headline(
            f"{subject} does not beat {before_colon}: it is behind by {lead} on {unseen}.", "nothing gained", hardest
        )
    if hardest.p is None:
        return _headline(
            f"{subject} is ahead of {other} by {lead} on {unseen}, but no paired test can be made there.",
            "cannot be told",
            hardest,
        )
    needed = "" if hardest.items_needed is None else f"; about {about(hardest.items_needed)} would tell"
    return _headline(
        f"{subject} is ahead of {other} by {lead} on {unseen}, which may be chance ({corrected}){needed}.",
        "cannot be told",
        hardest,
    )


def _headline(text: str, belief: Belief, against: Comparison) -> Headline:
    return Headline(text=text, belief=belief, against=against)


def _described(comparison: Comparison, verdict: Verdict) -> str:
    name, every = f"“{comparison.name}”", len(verdict.comparisons)
    count = sum(each.models == 1 for each in verdict.comparisons) or every  # the list that it is the strongest of
    if every == 1:
        return name
    if count == every:
        return f"{name}, the strongest of the {count} it was compared with,"
    if count == 1:
        return f"{name}, the only single model it was compared with,"
    return f"{name}, the strongest of the {count} single models it was compared with,"


def _lead(comparison: Comparison, unit: Unit) -> str:
    """The size of a difference, with its interval from the smaller to the larger end."""
    size = amount(abs(comparison.difference), unit)
    if comparison.low is None or comparison.high is None:
        return size
    ends = sorted((comparison.low, comparison.high), key=lambda end: end if comparison.difference >= 0 else -end)
    low, high = (end if comparison.difference >= 0 else -end for end in ends)
    return f"{size} (95 % interval {amount(low, unit).removesuffix(' points')} to {amount(high, unit)})"
