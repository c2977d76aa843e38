"""The state of a training in one file: a training that resumes from it ends in the same bits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import Tensor

from evomerge.checkpoints.recipe_files import from_bytes, to_bytes
from evomerge.errors import InvalidInput
from evomerge.recipe import Recipe
from evomerge.whole_files import write_whole

_FORM = 3  # raised whenever the same training would give other numbers, or the file changes


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """A training after some steps.

    Attributes:
        coefficients, first, second: the trained coefficients and their moments, by tensor name.
        history: [losses, penalties] of every step so far.
        before: loss before the training by source.
        best, best_losses: the coefficients that the training would end with, and their losses by source, where these
            are not the last ones.
        forward_tokens, gradient_tokens: read so far.
        seconds: of training so far.
    """

    coefficients: Mapping[str, Tensor]
    first: Mapping[str, Tensor]
    second: Mapping[str, Tensor]
    history: list[tuple[dict[str, float], dict[str, float]]]
    before: dict[str, float]
    forward_tokens: int
    gradient_tokens: int
    seconds: float
    best: Mapping[str, Tensor] = field(default_factory=dict)
    best_losses: Mapping[str, float] = field(default_factory=dict)


def checkpoint_path(
    folder: Path, trainer: str, recipe: Recipe, settings: BaseModel, *, texts: str, seed: int, device: torch.device
) -> Path:
    """Path of this training's checkpoint.

    Its name hashes recipe, settings, texts, seed and device, so that no other training loads it.

    Args:
        trainer: its name, with which the file name begins.
        texts: digest of the calibration texts.
    """
    content = settings.model_dump(mode="json", exclude={"checkpoint_every"})
    key = json.dumps([_FORM, recipe.digest, content, texts, seed, device.type], sort_keys=True)
    return folder / f"{trainer}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"


def save_state(path: Path, state: TrainingState) -> None:
    """Replace the former state in one step: there is always a whole one."""
    parts = {
        "coefficients": state.coefficients,
        "first": state.first,
        "second": state.second,
        "best": state.best,
    }
    tensors = {f"{part}/{name}": tensor for part, values in parts.items() for name, tensor in values.items()}
    metadata = {
        "history": json.dumps(state.history),
        "before": json.dumps(state.before),
        "best_losses": json.dumps(dict(state.best_losses)),
        "forward_tokens": str(state.forward_tokens),
        "gradient_tokens": str(state.gradient_tokens),
        "seconds": str(state.seconds),
    }
    write_whole(path, to_bytes(tensors, metadata))


def load_state(path: Path, device: torch.device) -> TrainingState | None:
    """The last saved state; None where there is none, or none that can be read: it is only a cache."""
    try:
        tensors, metadata = from_bytes(path.read_bytes())
    except (OSError, InvalidInput):
        return None

    def part(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(f"{prefix}/"): tensor.to(device)
            for name, tensor in tensors.items()
            if name.startswith(f"{prefix}/")
        }

    return TrainingState(
        coefficients=part("coefficients"),
        first=part("first"),
        second=part("second"),
        history=[(losses, penalties) for losses, penalties in json.loads(metadata["history"])],
        before=json.loads(metadata["before"]),
        forward_tokens=int(metadata["forward_tokens"]),
        gradient_tokens=int(metadata["gradient_tokens"]),
        seconds=float(metadata["seconds"]),
        best=part("best"),
        best_losses=json.loads(metadata.get("best_losses", "{}")),
    )
