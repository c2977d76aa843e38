"""The weight bank: sources resident in a worker, and recipes materialised from them into a live model.

- Holds: the sources and their placement in memory, what the workers of a machine share, tensors that recipes bring with
  them, live models of any depth.
- Does not hold: compiled passes (`evomerge.passes`), and definitions of methods.
- Start reading at: `weight_bank.py`.
"""

from evomerge.bank.open_bank import open_bank
from evomerge.bank.weight_bank import WeightBank

__all__ = ["WeightBank", "open_bank"]
