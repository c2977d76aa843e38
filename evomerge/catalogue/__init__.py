"""Names of tensors and what they tell: layers, parts, units that may move, experts inside one checkpoint.

- Holds: `TensorCatalogue`, the tensors of a model with layer and part; patterns of units and of experts.
- Does not hold: values of tensors, and architectures by name.
- Start reading at: `tensor_catalogue.py`.
"""

from __future__ import annotations

from evomerge.catalogue.tensor_catalogue import (
    PART_PATTERNS,
    PARTS,
    TensorCatalogue,
    TensorEntry,
    build_catalogue,
    layer_of,
    part_of,
)

__all__ = ["PARTS", "PART_PATTERNS", "TensorCatalogue", "TensorEntry", "build_catalogue", "layer_of", "part_of"]
