"""The verdict: the winner is named from the search items, and only then compared on the held-out items."""

from evomerge.verdict.comparison import Comparison, Lead, Verdict
from evomerge.verdict.judgement import Entrant, compare, judge
from evomerge.verdict.winner import (
    Winner,
    name_winner,
    note_look,
    read_digests,
    read_winner,
    store_digests,
    winning_recipe,
)
from evomerge.verdict.wording import markdown, sentence

__all__ = [
    "Comparison",
    "Entrant",
    "Lead",
    "Verdict",
    "Winner",
    "compare",
    "judge",
    "markdown",
    "name_winner",
    "note_look",
    "read_digests",
    "read_winner",
    "sentence",
    "store_digests",
    "winning_recipe",
]
