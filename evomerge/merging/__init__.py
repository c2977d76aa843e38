"""Merge arithmetic: plain functions on tensors, one file per method.

`merge_state_dicts` merges whole state dicts and is the reference. `merge_rule` merges the tensors of one recipe rule
one at a time; the reference and the weight bank both call it, so that they share the arithmetic.
"""

from evomerge.merging.merge import merge_rule
from evomerge.merging.order_statistics import Thresholds
from evomerge.merging.rule_tensors import RuleTensors
from evomerge.merging.state_dicts import merge_state_dicts

__all__ = ["RuleTensors", "Thresholds", "merge_rule", "merge_state_dicts"]
