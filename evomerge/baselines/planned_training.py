"""Tokens that the training of a baseline will read, known before it is begun."""

from __future__ import annotations

from evomerge.baselines.baseline_plans import training_settings
from evomerge.baselines.info import BASELINES
from evomerge.evaluation.calibration_texts import calibration_texts
from evomerge.opening.inputs import Inputs
from evomerge.optimisation.batches import PlannedTokens
from evomerge.spec import BaselineSpec
from evomerge.trainers import planned_tokens


def planned_training(baseline: BaselineSpec, inputs: Inputs) -> PlannedTokens | None:
    """Tokens that the training of a baseline will read; None for a baseline that is not trained.

    Raises:
        InvalidInput: its texts are missing, or fewer than a batch needs.
    """
    if not BASELINES[baseline.name].trained:
        return None
    calibrations = {expert.name: expert.calibration for expert in inputs.spec.experts if expert.calibration is not None}
    texts = {name: calibration_texts(inputs.evaluator, each) for name, each in calibrations.items()}
    trainer, settings = str(BASELINES[baseline.name].trainer), training_settings(baseline, inputs.longest_text)
    return planned_tokens(trainer, texts, settings, inputs.spec.seed)
