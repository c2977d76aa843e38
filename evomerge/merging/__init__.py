"""Merges of whole state dicts, and the methods that see more than an element at a time.

- Holds: `merge_state_dicts`, the reference path; `merge_rule`, which merges the tensors of one recipe rule one at a
  time and is called by the reference and by the weight bank, so that they share the arithmetic; one file for each
  method that takes a tensor as a matrix or a model as a whole, and the distances between models.
- Does not hold: elementwise methods (`evomerge.elementwise`), names, ranges and options of methods
  (`evomerge.methods`), files, and compiled code (`evomerge.bank`).
- Start reading at: `state_dicts.py`, then `regmean.py`.
"""

from evomerge.merging.merge import merge_rule
from evomerge.merging.state_dicts import merge_state_dicts
from evomerge.tensors.order_statistics import Thresholds
from evomerge.tensors.rule_tensors import RuleTensors

__all__ = ["RuleTensors", "Thresholds", "merge_rule", "merge_state_dicts"]
