"""The weight bank: sources resident in a worker, and recipes materialised from them into a live model."""

from evomerge.bank.weight_bank import WeightBank, open_bank

__all__ = ["WeightBank", "open_bank"]
