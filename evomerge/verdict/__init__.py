"""The verdict: the winner is named from the search items, and only then compared on the held-out items.

Holds: the winner, paired tests, Holm's correction, shares of looks, sentences.
Does not hold: scoring; it compares outcomes that exist.
Start reading at: `records.py`, then `judge.py`.
"""

from evomerge.verdict.judge import Entrant, compare, judge
from evomerge.verdict.note import markdown
from evomerge.verdict.records import (
    Winner,
    name_winner,
    note_look,
    read_digests,
    read_verdict,
    read_winner,
    store_digests,
    store_verdict,
    winning_recipe,
)
from evomerge.verdict.sentences import sentence
from evomerge.verdict.verdict import Comparison, Lead, Verdict, VerdictWord

__all__ = [
    "Comparison",
    "Entrant",
    "Lead",
    "Verdict",
    "VerdictWord",
    "Winner",
    "compare",
    "judge",
    "markdown",
    "name_winner",
    "note_look",
    "read_digests",
    "read_verdict",
    "read_winner",
    "sentence",
    "store_digests",
    "store_verdict",
    "winning_recipe",
]
