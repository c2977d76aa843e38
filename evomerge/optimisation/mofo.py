"""Adam with decoupled weight decay, and MoFO: the same, moving only the entries with the largest momentum."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Mofo:
    """Momentum-filtered Adam (MoFO, arXiv 2407.20999); with `alpha` None it is AdamW (arXiv 1711.05101).

    A value is [n, ...]: one coefficient vector for each of n sources. At every step the moments of all entries are
    updated, and of each vector only the entries whose first moment is among the largest `alpha` by magnitude are moved
    (at least one; entries tied with the last of them too). A vector of one element is moved always. The weight decay
    applies to all entries.

    Everything is in the tensors and the number of steps, so that an optimiser that is given them resumes exactly.

    Attributes:
        first, second: the moments by name, of the shapes of the values.
        steps: number of steps made.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        *,
        learning_rate: float,
        alpha: float | None,
        weight_decay: float,
    ) -> None:
        self.values = values
        self.first = {name: torch.zeros_like(value) for name, value in values.items()}
        self.second = {name: torch.zeros_like(value) for name, value in values.items()}
        self.steps = 0
        self._learning_rate = learning_rate
        self._alpha = alpha
        self._weight_decay = weight_decay

    def restore(
        self, steps: int, values: Mapping[str, Tensor], first: Mapping[str, Tensor], second: Mapping[str, Tensor]
    ) -> None:
        """Continue after so many steps: copy values and moments in place."""
        self.steps = steps
        for name, value in self.values.items():
            value.copy_(values[name])
            self.first[name].copy_(first[name])
            self.second[name].copy_(second[name])

    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """Move the values in place, along gradients of the same names and shapes."""
        self.steps += 1
        corrections = [1 - beta**self.steps for beta in BETAS]
        for name, value in self.values.items():
            gradient, first, second = gradients[name], self.first[name], self.second[name]
            first.lerp_(gradient, 1 - BETAS[0])  # m = b1 m + (1 - b1) g
            second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])  # v = b2 v + (1 - b2) g²
            update = first / corrections[0] / ((second / corrections[1]).sqrt_().add_(EPSILON))  # m' / (√v' + eps)
            if self._alpha is not None:
                update *= _largest(first, self._alpha)  # the filter of MoFO
            value.mul_(1 - self._learning_rate * self._weight_decay).sub_(update, alpha=self._learning_rate)


def _largest(moment: Tensor, alpha: float) -> Tensor:
    """True where the entry is among the largest of its source by magnitude."""
    magnitudes = moment.abs().reshape(len(moment), -1)
    count = magnitudes.shape[1]
    kept = max(1, int(alpha * count + 1e-9))
    if kept >= count:
        return torch.ones_like(moment, dtype=torch.bool)
    threshold = magnitudes.kthvalue(count - kept + 1, dim=1, keepdim=True).values
    return (magnitudes >= threshold).reshape(moment.shape)


def clip_gradients(gradients: Mapping[str, Tensor], largest: float) -> Tensor:
    """Scale the gradients in place so that their global norm is at most `largest`, and return the norm they had."""
    norms = [torch.linalg.vector_norm(gradient) for gradient in gradients.values()]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    scale = (largest / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients.values():
        gradient.mul_(scale)
    return norm
