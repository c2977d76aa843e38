"""Merges that are trained: they start from a recipe, report their steps, and end in a recipe.

Holds: trainers by name, DAM and AdaMerging: losses, coefficients, optimiser, exact resumption from a checkpoint.
Does not hold: the decision to train, which is a baseline's.
Start reading at: `trainer.py`, then `adamerging_training.py`; `dam_training.py` beside `dam.py` for the losses.
"""

from evomerge.training.adamerging_settings import AdaSettings
from evomerge.training.adamerging_training import AdaResult, EntropyStep, train_adamerging
from evomerge.training.batches import PlannedTokens, planned_tokens
from evomerge.training.dam_settings import DamSettings, LossWeights
from evomerge.training.dam_training import DamResult, DamStep, train_dam
from evomerge.training.trainer import SETTINGS, TRAINERS, Trainer, find_trainer
from evomerge.training.training_inputs import TrainingInputs

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
