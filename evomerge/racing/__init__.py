"""Racing: candidates are scored block by block, and those that are worse are dropped before the last."""

from evomerge.racing.boundary import boundary
from evomerge.racing.brackets import BracketSettings, bracket, goes_on, rungs
from evomerge.racing.fidelity import Finding, Full, Look, build_fidelity
from evomerge.racing.race import Decision, RaceSettings, decide, information, require_means

__all__ = [
    "BracketSettings",
    "Decision",
    "Finding",
    "Full",
    "Look",
    "RaceSettings",
    "boundary",
    "bracket",
    "build_fidelity",
    "decide",
    "goes_on",
    "information",
    "require_means",
    "rungs",
]
