"""Coefficients of task vectors that are learned by gradient, from right answers, from experts, or from sureness.

Holds: the settings of the trainer `learned`.
Does not hold: other trainings (`training/`), what trainings share (`optimisation/`), the decision to train.
Start reading at: `settings.py`.
"""

from evomerge.learned.settings import LearnedLosses, LearnedSettings

__all__ = ["LearnedLosses", "LearnedSettings"]
