"""The result of a search for experiment trackers: its verdict, and the rows that were scored on both parts."""

from __future__ import annotations

from evomerge.charts.both_parts import both_parts
from evomerge.errors import InvalidInput
from evomerge.study.stored_search import StoredSearch
from evomerge.telemetry.tracker import Conclusion
from evomerge.verdict.headline import headline
from evomerge.verdict.note import markdown
from evomerge.verdict.records import read_verdict

_COLUMNS = ("name", "kind", "held_out", "held_out_stderr", "search", "search_stderr")


def finding(stored: StoredSearch) -> Conclusion:
    """The stored verdict with the leaderboard; a winner's row is of the kind "best".

    Raises:
        InvalidInput: the study has no verdict.
    """
    verdict = read_verdict(stored.study)
    if verdict is None:
        raise InvalidInput(f"study {stored.spec.name!r} has no verdict yet; `evomerge run` ends with one")
    answer = headline(verdict)
    rows = sorted(both_parts(stored), key=lambda row: -row.held_out)
    return Conclusion(
        headline=answer.text,
        belief=answer.belief,
        note=markdown(verdict),
        columns=_COLUMNS,
        rows=[[getattr(row, column) for column in _COLUMNS] for row in rows],
    )
