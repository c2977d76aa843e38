"""Coefficients of task vectors that are learned by gradient, from right answers, from experts, or from sureness.

Holds: the trainer `learned`: its settings, losses and course, coefficients of any granularity, items to stop by; the
choice among granularities; the trainer `fine-tune`, of all weights on the same items.
Does not hold: other trainings (`training/`), what trainings share (`optimisation/`), the decision to train.
Start reading at: `learned_training.py`, then `losses.py`.
"""

from evomerge.learned.learned_settings import LearnedLosses, LearnedSettings
from evomerge.learned.learned_training import LearnedResult, LearnedStep, train_learned

__all__ = ["LearnedLosses", "LearnedResult", "LearnedSettings", "LearnedStep", "train_learned"]
