"""Entropy and divergence of predictions, position by position, in nats.

Computed in float32 (float64 where float64 comes in), and can be differentiated. A logit of -inf is a class that cannot
be: it adds nothing, and has no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor


def entropy_by_position(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The entropy of softmax(logits / T) of every position: [..., V] -> [...]."""
    scores = torch.log_softmax(wide(logits) / temperature, -1)
    return -(scores.exp() * _bounded(scores)).sum(-1)


def kl_by_position(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher / T) ‖ softmax(student / T)) of every position: [..., V] -> [...].

    It is infinite where the student has no probability for a class that the teacher has some for.
    """
    student = torch.log_softmax(wide(student_logits) / temperature, -1)
    teacher = torch.log_softmax(wide(teacher_logits) / temperature, -1)
    return kl_of_scores(student, teacher)


def kl_of_scores(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student) of log-probabilities, or of a part of them: [..., V] -> [...]."""
    student = student.masked_fill(teacher.isneginf(), 0.0)  # beside a probability of 0 the student's does not matter
    return (teacher.exp() * (_bounded(teacher) - student)).sum(-1)


def wide(tensor: Tensor) -> Tensor:
    """In float32, or in float64 where it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _bounded(scores: Tensor) -> Tensor:
    """With a lower bound, which keeps 0 * -inf from being NaN."""
    return scores.clamp(min=torch.finfo(scores.dtype).min)
