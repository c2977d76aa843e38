"""Adapters as sources: what PEFT writes for LoRA, read as a model whose tensors are those of the base, changed."""

from evomerge.adapters.adapted_tensors import AdaptedTensors, LowRank
from evomerge.adapters.expert import adapter_names, is_adapter, open_expert

__all__ = ["AdaptedTensors", "LowRank", "adapter_names", "is_adapter", "open_expert"]
