"""Importance of experts and of groups of tensors, from the finished trials of a search.

- Holds: the share of the differences between trials that only the parameters of one expert or group explain, with an
  interval.
- Does not hold: parameters one by one (Optuna Dashboard shows those), and anything that scores a merge.
- Start reading at: `left_out.py` for the statistics, then `experts_and_groups.py`.
"""

from evomerge.importance.experts_and_groups import Importance, importance_document, importances

__all__ = ["Importance", "importance_document", "importances"]
