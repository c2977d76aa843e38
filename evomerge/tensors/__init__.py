"""Tensors as merges see them: those of one rule, task vectors, order statistics, masks, sums in a fixed order.

- Holds: what several methods share, and `plans.py`, the form of a method that is compiled to one pass over memory.
- Does not hold: methods (`evomerge.elementwise`, `evomerge.merging`), files, compiled code (`evomerge.bank`).
- Start reading at: `rule_tensors.py`.
"""
