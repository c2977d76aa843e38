"""The weight bank: sources resident in a worker, and recipes materialised from them into a live model.

- Holds: the sources and their placement in memory, tensors that recipes bring with them, live models of any depth.
- Does not hold: compiled passes (`evomerge.passes`), and definitions of methods.
- Start reading at: `weight_bank.py`.
"""

from evomerge.bank.weight_bank import WeightBank, open_bank

__all__ = ["WeightBank", "open_bank"]
