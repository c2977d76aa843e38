"""Merge arithmetic: plain functions on tensors, one file per method.

`merge_state_dicts` merges whole state dicts and is the reference. `merge_group` merges the tensors of one recipe rule
one at a time; the reference and the weight bank both call it, so that they share the arithmetic.
"""

from evomerge.merging.merge import METHOD_FUNCTIONS, merge_group
from evomerge.merging.state_dicts import merge_state_dicts
from evomerge.merging.thresholds import Thresholds

__all__ = ["METHOD_FUNCTIONS", "Thresholds", "merge_group", "merge_state_dicts"]
