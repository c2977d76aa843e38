"""Merges that are, element by element, a formula of the sources' elements and of a few numbers known before.

- Holds: the definition of every such method, one file each, beside it its formula for one pass over memory. The numbers
  known before are weights, norms, thresholds or a statistic of the element.
- Does not hold: merges that see a tensor as a matrix or a model as a whole (`evomerge.merging`).
- Start reading at: `task_arithmetic.py`, then `ties.py`.
"""
