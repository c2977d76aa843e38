"""Tokens that the training of a baseline will read, known before it is begun."""

from __future__ import annotations

from evomerge.baselines.merges import training_settings
from evomerge.opening.inputs import Inputs
from evomerge.spec import TRAINED, BaselineSpec
from evomerge.training import DamSettings, PlannedTokens, planned_tokens
from evomerge.worker import calibration_texts


def planned_training(baseline: BaselineSpec, inputs: Inputs) -> PlannedTokens | None:
    """What the training of a baseline will read; None for one that is not trained.

    Raises:
        InvalidInput: its texts are missing, or fewer than a batch needs.
    """
    if baseline.name not in TRAINED:
        return None
    calibrations = {expert.name: expert.calibration for expert in inputs.spec.experts if expert.calibration is not None}
    texts = {name: calibration_texts(inputs.evaluator, each) for name, each in calibrations.items()}
    settings = DamSettings.model_validate(training_settings(baseline, longest_text(inputs)))
    return planned_tokens(texts, settings, inputs.spec.seed)


def longest_text(inputs: Inputs) -> int | None:
    """Tokens that the model can hold, None where its config does not say."""
    longest = inputs.base.settings.get("max_position_embeddings")
    return longest if isinstance(longest, int) else None
