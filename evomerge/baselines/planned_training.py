"""Tokens that the training of a baseline will read, known before it is begun."""

from __future__ import annotations

from evomerge.baselines.info import BASELINES
from evomerge.baselines.training_settings import SearchFacts, search_facts, training_settings
from evomerge.evaluation.calibration_texts import calibration_texts
from evomerge.objective import task_weights
from evomerge.opening.inputs import Inputs
from evomerge.optimisation.batches import PlannedTokens
from evomerge.spec import BaselineSpec
from evomerge.trainers import planned_tokens


def facts_of(inputs: Inputs) -> SearchFacts:
    """The facts that the trainings of a search go by."""
    objective = inputs.spec.objective
    return search_facts(
        inputs.spec.experts,
        inputs.space.groups,
        longest=inputs.longest_text,
        weights=task_weights(objective, inputs.evaluator.weights),
        aggregate=objective.ranking,
    )


def planned_training(baseline: BaselineSpec, inputs: Inputs) -> PlannedTokens | None:
    """Tokens that the training of a baseline will read, at most; None for a baseline that is not trained.

    Raises:
        InvalidInput: its texts are missing, or fewer than a batch needs.
    """
    if not BASELINES[baseline.name].trained:
        return None
    calibrations = {expert.name: expert.calibration for expert in inputs.spec.experts if expert.calibration is not None}
    texts = {name: calibration_texts(inputs.evaluator, each) for name, each in calibrations.items()}
    trainer, settings = str(BASELINES[baseline.name].trainer), training_settings(baseline, facts_of(inputs))
    return planned_tokens(trainer, texts, settings, inputs.spec.seed)
