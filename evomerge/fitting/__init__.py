"""Experts whose tensors differ a little from the base's, brought into its form by the policies of their refs.

- Holds: rows of embeddings by token, tied and untied heads, tensors that one of the two lacks.
- Does not hold: what is refused without a policy (`evomerge.checkpoints.compatibility`).
- Start reading at: `fitted_expert.py`, then `fitted_source.py`.
"""

from evomerge.fitting.fitted_expert import check_policies, open_fitted

__all__ = ["check_policies", "open_fitted"]
