"""Merges that are trained: they start from a recipe, report their steps, and end in a recipe.

Holds: trainers by name, and the losses and courses of DAM and AdaMerging.
Does not hold: the decision to train, which is a baseline's; what trainings share, which is in `optimisation/`.
Start reading at: `trainer.py`, then `adamerging_training.py`; `dam_training.py` beside `dam.py` for the losses.
"""

from evomerge.optimisation.batches import PlannedTokens, planned_tokens
from evomerge.optimisation.training_inputs import TrainingInputs
from evomerge.training.adamerging_settings import AdaSettings
from evomerge.training.adamerging_training import AdaResult, EntropyStep, train_adamerging
from evomerge.training.dam_settings import DamSettings, LossWeights
from evomerge.training.dam_training import DamResult, DamStep, train_dam
from evomerge.training.trainer import SETTINGS, TRAINERS, Trainer, find_trainer

__all__ = [
    "SETTINGS",
    "TRAINERS",
    "AdaResult",
    "AdaSettings",
    "DamResult",
    "DamSettings",
    "DamStep",
    "EntropyStep",
    "LossWeights",
    "PlannedTokens",
    "Trainer",
    "TrainingInputs",
    "find_trainer",
    "planned_tokens",
    "train_adamerging",
    "train_dam",
]
