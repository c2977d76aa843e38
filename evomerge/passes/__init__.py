"""Compiled passes over memory: a rule's formula into the live model, and tables of sorted magnitudes.

- Holds: kernels and their cache, fused rules, threshold tables and the store that workers of a machine share, rules
  on masked task vectors.
- Does not hold: a definition of a method. Every result has the bits of the method's own function.
- Start reading at: `fused_rule.py`, then `kernels.py`; `threshold_tables.py` for thresholds.
"""
