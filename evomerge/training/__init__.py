"""Merges that are trained: they start from a recipe, report their steps, and end in a recipe."""

from evomerge.training.plan import PlannedTokens, planned_tokens
from evomerge.training.settings import DamSettings, LossWeights
from evomerge.training.train import Step, Trained, train_dam

__all__ = ["DamSettings", "LossWeights", "PlannedTokens", "Step", "Trained", "planned_tokens", "train_dam"]
