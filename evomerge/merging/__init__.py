"""Merge arithmetic: plain functions on tensors, one file per method.

- Holds: the definition of every method, beside it its formula for one pass over memory, and `merge_state_dicts`, the
  reference path, which merges whole state dicts. `merge_rule` merges the tensors of one recipe rule one at a time; the
  reference and the weight bank both call it, so that they share the arithmetic.
- Does not hold: names, ranges and options of methods (`evomerge.methods`), files, and compiled code (`evomerge.bank`).
- Start reading at: `rule_tensors.py`, then `task_arithmetic.py`.
"""

from evomerge.merging.merge import merge_rule
from evomerge.merging.order_statistics import Thresholds
from evomerge.merging.rule_tensors import RuleTensors
from evomerge.merging.state_dicts import merge_state_dicts

__all__ = ["RuleTensors", "Thresholds", "merge_rule", "merge_state_dicts"]
