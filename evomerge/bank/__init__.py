"""The weight bank: sources resident in a worker, and recipes materialised from them into a live model.

- Holds: the sources, threshold tables, tensors that recipes bring with them, and formulas compiled to kernels.
- Does not hold: a definition of a method. Every result has the bits of the function in `evomerge.merging`.
- Start reading at: `weight_bank.py`, then `fused_rule.py`.
"""

from evomerge.bank.weight_bank import WeightBank, open_bank

__all__ = ["WeightBank", "open_bank"]
