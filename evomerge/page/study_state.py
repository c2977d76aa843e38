"""The answer of a study at any moment: the headline of its verdict, or how it stands before there is one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evomerge.charts.search_course import SearchCourse
from evomerge.leaderboard import Line, leader_of, left_out_of, meets_constraints
from evomerge.messages import counted
from evomerge.report.status_report import status_document
from evomerge.sanity.probe_records import winner_warning
from evomerge.study.command_line import command_line
from evomerge.study.status import FINISHED_PHASE, SEARCHING_PHASE
from evomerge.study.stored_search import StoredSearch
from evomerge.verdict import Verdict, read_winner
from evomerge.verdict.headline import NOT_YET, Headline, headline


def answer(stored: StoredSearch, lines: Sequence[Line], verdict: Verdict | None) -> Headline:
    """The winner, its lead, and whether to believe it; or the leader, and why it cannot be believed yet."""
    if verdict is not None:
        return headline(verdict)
    best = leader_of(stored, lines)
    if best is None or best.trial is None:
        return Headline(text=f"Nothing has won: no trial of {stored.spec.name} has a score yet.", belief=NOT_YET)
    others = [line for line in lines if line.kind in ("source", "baseline") and line.search is not None]
    text = f"{best.label.capitalize()} leads with {_search_value(best):.3f} on the search items"
    if others:
        strongest = max(others, key=_search_value)
        lead = _search_value(best) - _search_value(strongest)
        text += f", {abs(lead):.3f} {'above' if lead >= 0 else 'below'} {strongest.name}"
    if not meets_constraints(stored.study, best.trial):
        text += ", but no trial meets all constraints"
    held_out = "not all held-out items have" if any(line.held_out for line in lines) else "no held-out item has"
    text += f". Do not believe it yet: the best of many looks better than it is, and {held_out} been scored."
    return Headline(text=text, belief=NOT_YET)


def warnings(stored: StoredSearch, lines: Sequence[Line], verdict: Verdict | None) -> list[str]:
    """Sentences that a reader has to know before the numbers."""
    winner = read_winner(stored.study.user_attrs)
    found = []
    if verdict is not None and winner is not None and winner.trial != verdict.trial:
        renewal = command_line(stored.spec, "run")
        found.append(f"The verdict is on an earlier winner ({verdict.winner}); `{renewal}` renews it.")
    if winner is not None and not meets_constraints(stored.study, winner.trial):
        found.append("No trial meets all constraints; the best one misses some, too.")
    warning = winner_warning(stored.study)
    if warning and (verdict is None or verdict.warning != warning):
        found.append(warning)
    found += [f"{name} is left out: {reason}" for name, reason in left_out_of(stored, lines).items()]
    return found


def state(stored: StoredSearch, course: SearchCourse) -> str:
    """The state of the search in one line: the trials that have ended, its phase, and whether that was broken off."""
    document = status_document(stored.study, None)
    phase = document["phase"] or "not begun"
    status = (document["status"] or {}).get("state")
    broken_off = phase.startswith(SEARCHING_PHASE) and status in ("interrupted", "failed")
    counts = [f"{counted(len(course.points), 'trial')} scored"]
    counts += [f"{course.dropped} dropped early"] * bool(course.dropped)
    counts += [f"{course.failed} failed"] * bool(course.failed)
    running = document["trials"]["running"] if phase != FINISHED_PHASE and not broken_off else 0
    counts += [f"{running} in flight"] * bool(running)
    return ", ".join([*counts, f"{status} while {phase}" if broken_off else phase])


def _search_value(line: Line) -> float:
    value = line.search.value if line.search is not None else math.nan
    return value if math.isfinite(value) else -math.inf
