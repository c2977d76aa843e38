"""Merges that are trained: they start from a recipe, report their steps, and end in a recipe.

Holds: the losses and courses of DAM and AdaMerging.
Does not hold: trainers by name (`trainers`); the decision to train, which is a baseline's; what trainings share, which
is in `optimisation/`.
Start reading at: `adamerging_training.py`; `dam_training.py` beside `dam.py` for the losses.
"""

from evomerge.optimisation.batches import PlannedTokens, planned_tokens
from evomerge.optimisation.training_inputs import TrainingInputs
from evomerge.training.adamerging_settings import AdaSettings
from evomerge.training.adamerging_training import AdaResult, EntropyStep, train_adamerging
from evomerge.training.dam_settings import DamSettings, LossWeights
from evomerge.training.dam_training import DamResult, DamStep, train_dam

__all__ = [
    "AdaResult",
    "AdaSettings",
    "DamResult",
    "DamSettings",
    "DamStep",
    "EntropyStep",
    "LossWeights",
    "PlannedTokens",
    "TrainingInputs",
    "planned_tokens",
    "train_adamerging",
    "train_dam",
]
