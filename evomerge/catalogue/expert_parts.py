"""Parts of a layer that is a mixture of experts, by the names of its tensors: router, routed and shared experts.

They are finer than the parts of the catalogue, and are known beside them: of most mixtures all of these are "mlp".
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal, TypeAlias

from evomerge.catalogue.tensor_catalogue import TensorEntry
from evomerge.errors import InvalidInput

# `each_expert` is one part for each number of an expert.
GroupedPart: TypeAlias = Literal[
    "attention", "mlp", "norm", "embedding", "head", "router", "shared_experts", "experts", "each_expert"
]

# The first pattern that matches the name decides: a gate of a shared expert is part of the router.
_PATTERNS = (
    ("router", r"(^|\.)(router|gate|wg|shared_expert_gate|expert_bias|moe_statics|e_score_correction_bias)(\.|$)"),
    ("shared_experts", r"(^|\.)(shared_experts?|shared_mlp)\."),
    ("experts", r"(^|\.)(experts|(mlp|block_sparse_moe)\.(input|output)_linear)(\.|$)"),
)
_NUMBER = re.compile(r"(?:^|\.)experts\.(\d+)\.")


def grouped_part(entry: TensorEntry, parts: Collection[GroupedPart]) -> str:
    """The name of the part that a tensor is grouped in: the finest of `parts` that it belongs to, or "rest".

    Raises:
        InvalidInput: experts are to be grouped one by one, and the tensor holds several.
    """
    finer = _expert_part(entry)
    if finer == "experts" and "each_expert" in parts:
        number = _NUMBER.search(entry.name)
        if number is None:
            raise InvalidInput(
                f"this space divides by experts (each_expert), but {entry.name} holds all experts of its layer; use "
                "parts: [experts]"
            )
        return f"expert{number.group(1)}"
    return next((part for part in (finer, entry.part) if part is not None and part in parts), "rest")


def _expert_part(entry: TensorEntry) -> str | None:
    if entry.part not in ("mlp", "rest"):
        return None
    return next((part for part, pattern in _PATTERNS if re.search(pattern, entry.name)), None)
