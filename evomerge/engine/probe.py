"""Requests of made-up tokens at real lengths, and the comparison of two ways of computing the same log-likelihoods.

A configuration tells only what its author thought of. What a model really does is found out by running it: on tokens
that belong to no item, so that nothing that is held out is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from evomerge.engine.protocol import Loglikelihoods

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Reset = Callable[[], None]


def made_up_tokens(model: PreTrainedModel, length: int, seed: int) -> list[int]:
    """Token ids in no pattern; other seeds give other ones."""
    vocabulary = vocabulary_of(model)
    return [(seed * 104_729 + number * 7919) % vocabulary for number in range(1, length + 1)]


def vocabulary_of(model: PreTrainedModel) -> int:
    """The number of token ids that the model takes."""
    size = getattr(model.config.get_text_config(), "vocab_size", None)
    return int(size) if size else int(model.get_input_embeddings().weight.shape[0])


def values_of(requests: Loglikelihoods, model: PreTrainedModel, reset: Reset) -> torch.Tensor:
    """Log-likelihoods [requests] in fp64."""
    return torch.tensor([value for value, _ in requests.run(model, reset)], dtype=torch.float64)


def same_numbers(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether two computations of the same numbers agree up to the rounding of the model's dtype."""
    rounding = torch.finfo(dtype).eps ** 0.5 * (expected - expected.mean()).norm()
    return bool((found - expected).norm() <= rounding)
