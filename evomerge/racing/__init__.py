"""Racing: candidates are scored block by block, and those that are worse are dropped before the last."""

from evomerge.racing.boundary import boundary
from evomerge.racing.brackets import BracketSettings, bracket, rungs, survives_rung
from evomerge.racing.difference import DifferenceDecision, DifferenceSettings, decide_by_difference
from evomerge.racing.draw import Draw, make_draw
from evomerge.racing.fidelity import Fidelity, Full, InterimLook, LookResult, build_fidelity
from evomerge.racing.item_history import ItemHistory
from evomerge.racing.race import Decision, RaceSettings, decide, information, require_means

__all__ = [
    "BracketSettings",
    "Decision",
    "DifferenceDecision",
    "DifferenceSettings",
    "Draw",
    "Fidelity",
    "Full",
    "InterimLook",
    "ItemHistory",
    "LookResult",
    "RaceSettings",
    "boundary",
    "bracket",
    "build_fidelity",
    "decide",
    "decide_by_difference",
    "information",
    "make_draw",
    "require_means",
    "rungs",
    "survives_rung",
]
