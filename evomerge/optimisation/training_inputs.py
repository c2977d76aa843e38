"""The inputs that every trainer shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from evomerge.evaluation.evaluator import CalibrationText
from evomerge.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """The model, the sources and the texts of one training.

    Attributes:
        model: the live causal language model of transformers.
        live: its tensors by name.
        weights: source name -> its resident tensors by name, for all sources of the recipe and its base.
        texts: source name -> texts that it is good at. A source without any teaches nothing, but is merged.
        initial: the recipe that the training starts from.
        seed: key of every draw.
        files: folder where the files of the trained recipe are stored, and that holds those of `initial`.
        checkpoints: folder for the state of an unfinished training; None: it is not stored.
    """

    model: PreTrainedModel
    live: Mapping[str, Tensor]
    weights: Mapping[str, Mapping[str, Tensor]]
    texts: Mapping[str, Sequence[CalibrationText]]
    initial: Recipe
    seed: int
    files: Path
    checkpoints: Path | None = None
