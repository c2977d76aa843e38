"""The verdict in words: comparisons won, lost, equivalent and open, the items that would decide them, and luck."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evomerge.messages import counted, listed
from evomerge.verdict.verdict import ALPHA, Comparison, Lead, Unit, Verdict

_MANY = 4  # baselines that are named one by one, where all fared the same
_BEYOND = 10_000_000


def sentence(verdict: Verdict) -> str:
    """The verdict in plain words: one sentence on the baselines, then the caveats."""
    texts = [_outcomes(verdict), _luck(verdict), _controls(verdict)]
    if verdict.looks > 1:
        texts.append(
            f"The held-out items have been looked at {verdict.looks} times, which the p-values allow for; the words of "
            "earlier looks at the same merges stand."
        )
    if verdict.unit == "normalised points" and "points" in texts[1]:
        texts.append("A point is a hundredth of the way from the sources' worst score to their best.")
    return " ".join(text for text in texts if text)


def amount(value: float, unit: Unit, *, signed: bool = False) -> str:
    """A difference of the objective as people read it: in points where scores are shares."""
    sign = "+" if signed and value else ""
    if unit == "plain":
        return f"{value:{sign}.3g}".replace("-", "−")
    points = 100 * value
    digits = 1 if abs(points) >= 0.05 or not points else 2
    return f"{points:{sign}.{digits}f} points".replace("-", "−")


def _outcomes(verdict: Verdict) -> str:
    subject = f"The best merge found ({verdict.winner})"
    if not verdict.comparisons:
        return f"{subject} was compared with nothing: no baseline has been scored on the held-out items."
    same = [each for each in verdict.comparisons if each.discordant == 0]
    others = [each for each in verdict.comparisons if each.discordant > 0]
    beaten = [each for each in others if each.outcome == "beats"]
    alike = [each for each in others if each.outcome == "equivalent"]
    open_ones = [each for each in others if each.outcome == "cannot be told" and each.p is not None]
    untested = [each for each in others if each.outcome == "cannot be told" and each.p is None]
    behind = [each for each in others if each.outcome == "does not beat" and not each.worse]
    worse = [each for each in others if each.worse]
    every = len(verdict.comparisons)
    clauses = [
        f"beats {_names(beaten, every)}" if beaten else "",
        _equivalent(alike, verdict) if alike else "",
        _undecided(open_ones, verdict.items) if open_ones else "",
        f"is ahead of {_names(untested, every)}, but no paired test can be made there" if untested else "",
        f"does not beat {_names(behind, every)}" if behind else "",
        f"is beaten by {_names(worse, every)}" if worse else "",
        f"has the same outcomes as {_names(same, every)} on every item" if same else "",
    ]
    return f"{subject} {'; it '.join(clause for clause in clauses if clause)}."


def _equivalent(comparisons: Sequence[Comparison], verdict: Verdict) -> str:
    names = _names(comparisons, len(verdict.comparisons))
    return f"is equivalent to {names} (within {amount(verdict.margin or 0.0, verdict.unit)})"


def _undecided(comparisons: Sequence[Comparison], items: int) -> str:
    with_items = f"with {counted(items, 'item')}"
    needs = [f" (about {about(each.items_needed)} would tell)" if each.items_needed else "" for each in comparisons]
    if len(comparisons) == 1:
        return f"cannot be told apart from {comparisons[0].name} {with_items}{needs[0]}"
    named = [f"{each.name}{need}" for each, need in zip(comparisons, needs, strict=True)]
    return f"cannot be told apart {with_items} from {listed(named)}"


def _luck(verdict: Verdict) -> str:
    lead, unit = verdict.lead, verdict.unit
    if lead is None:
        return ""
    if lead.search <= 0:
        return f"Even on its own items the search found nothing better than {lead.baseline}."
    over = f"lead of {amount(lead.search, unit)} over {lead.baseline} on the search items"
    unseen = "on items that the search never saw"
    if lead.luck:
        return (
            f"Its {over} was {'mostly ' if lead.held_out > lead.search / 4 else ''}luck: {_left(lead, unit)} {unseen}."
        )
    beaten = any(each.baseline == lead.baseline and each.outcome == "beats" for each in verdict.comparisons)
    if not beaten and lead.by_chance is not None and lead.by_chance >= ALPHA:
        return (
            f"Its {over} may be luck alone, which gives the best of as many equally good candidates such a lead in "
            f"{_searches(lead.by_chance)}; {_left(lead, unit)} {unseen}."
        )
    return f"Its {over} is {amount(lead.held_out, unit)} {unseen}."


def _controls(verdict: Verdict) -> str:
    """A caveat where a control is not beaten."""
    as_good = [each.baseline for each in verdict.comparisons if each.control and each.outcome != "beats"]
    if not as_good:
        return ""
    return (
        f"The control{'s' * (len(as_good) > 1)} {listed(as_good)} cannot know what the experts learned: while the best "
        "merge is not shown to beat such a control, its score is no evidence that the experts' knowledge was merged."
    )


def _searches(share: float) -> str:
    return "nearly every search" if share > 0.95 else f"up to {round(100 * share)} of 100 searches"


def _left(lead: Lead, unit: Unit) -> str:
    if lead.held_out <= 0:
        return "nothing of it was left"
    text = amount(lead.held_out, unit)
    return f"{text} {'were' if text.endswith('points') else 'was'} left"


def about(number: int) -> str:
    """A number of items with two figures, because no more of them mean anything."""
    if number > _BEYOND:
        return "more than ten million"
    digits = max(0, int(math.log10(number)) - 1)
    return f"{round(number, -digits):,}"


def _names(comparisons: Sequence[Comparison], every: int) -> str:
    if len(comparisons) == every > _MANY:
        marked = [each.name for each in comparisons if each.name != each.baseline]
        return f"all {every} baselines{f', {listed(marked)} among them' if marked else ''}"
    return listed([each.name for each in comparisons])
