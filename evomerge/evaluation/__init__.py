"""Scoring of merges: evaluator packs, the item split, the lm-eval adapter and an analytic stand-in.

`evomerge.evaluation.lm_eval` is the one folder that loads torch and lm-eval; nothing here imports it.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from evomerge.errors import InvalidInput, unknown_name
from evomerge.evaluation.evaluator import Candidate, Evaluator
from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.packs.items import ItemBlock, Part, Split
from evomerge.packs.pack import Pack, code_files, known_packs, load_pack
from evomerge.packs.split import check_split, make_split, split_from_json, split_to_json

ENTRY_POINTS = "evomerge.evaluators"
EVALUATORS: dict[str, Any] = {}
"""Name -> an evaluator class that this process has put here; it comes before one of an installed package."""

__all__ = [
    "EVALUATORS",
    "Candidate",
    "Evaluator",
    "ItemBlock",
    "Pack",
    "Part",
    "Scores",
    "Split",
    "TaskScores",
    "check_split",
    "code_files",
    "find_evaluator",
    "known_evaluators",
    "known_packs",
    "load_pack",
    "make_split",
    "split_from_json",
    "split_to_json",
]


def known_evaluators() -> list[str]:
    """The names of the evaluator classes in `EVALUATORS`, and of those that installed packages offer."""
    return sorted({*EVALUATORS, *entry_points(group=ENTRY_POINTS).names})


def find_evaluator(name: str) -> Any:
    """The evaluator class in `EVALUATORS` under this name, else the one that an installed package offers.

    It is called as `cls(settings, bounds=..., seed=..., split=...)`: the keys that stand beside the name in the spec,
    the bounds of the search's parameters, the study's seed, and its split (None at creation).

    Raises:
        InvalidInput: neither has it, or it cannot be imported.
    """
    if name in EVALUATORS:
        return EVALUATORS[name]
    offered = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name not in offered:
        raise unknown_name("evaluator", name, offered)
    try:
        return offered[name].load()
    except (ImportError, AttributeError) as error:
        raise InvalidInput(
            f"evaluator {name!r} cannot be imported from {offered[name].value!r}: {error}; install the package again"
        ) from error
