"""Racing: candidates are scored block by block, and those that are worse are dropped before the last."""

from evomerge.racing.boundary import boundary
from evomerge.racing.brackets import BracketSettings, bracket, rungs, survives_rung
from evomerge.racing.fidelity import Fidelity, Full, InterimLook, LookResult, build_fidelity
from evomerge.racing.race import Decision, RaceSettings, decide, information, require_means

__all__ = [
    "BracketSettings",
    "Decision",
    "Fidelity",
    "Full",
    "InterimLook",
    "LookResult",
    "RaceSettings",
    "boundary",
    "bracket",
    "build_fidelity",
    "decide",
    "information",
    "require_means",
    "rungs",
    "survives_rung",
]
