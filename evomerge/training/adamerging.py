"""AdaMerging: merge coefficients learned by minimising the entropy of predictions on inputs without labels.

AdaMerging: adaptive model merging for multi-task learning, arXiv 2310.02575. For AdaMerging++ give task vectors that
are trimmed and sign-elected already.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor

from evomerge.errors import InvalidInput, MergeError, unknown_name
from evomerge.messages import some
from evomerge.training.predictions import entropy_by_position

__all__ = ["AdaStep", "entropy_loss", "train_coefficients"]

Granularity = Literal["tensor", "task"]
Loss = Callable[[dict[str, Tensor]], Tensor]

ALL = "all"  # key of the coefficients under granularity "task"


@dataclass(frozen=True, kw_only=True)
class AdaStep:
    """One step of the training.

    Attributes:
        step: counted from 1.
        loss: before the step.
        gradient: dL/dlambda before the step, by tensor name (granularity "task": the single key "all"), [n sources].
        coefficients: lambda after the step, likewise; raw, before they are clamped.
    """

    step: int
    loss: float
    gradient: dict[str, Tensor]
    coefficients: dict[str, Tensor]


def entropy_loss(logits: Tensor) -> Tensor:
    """Mean over all leading dimensions of the entropy of softmax(logits), in nats.

    Args:
        logits: [..., classes], of any float dtype. A logit of -inf is a class that cannot be.

    Returns:
        A scalar in float32 (float64 where float64 comes in), which can be differentiated.

    Raises:
        InvalidInput: no floating-point tensor of that shape, or one without elements.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or not logits.dim() or not logits.numel():
        given = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise InvalidInput(f"the entropy is that of logits [..., classes], but got {given}")
    return entropy_by_position(logits).mean()


def train_coefficients(
    base: Mapping[str, Tensor],
    task_vectors: Sequence[Mapping[str, Tensor]],
    loss: Loss,
    *,
    granularity: Granularity = "tensor",
    initial: float = 0.3,
    learning_rate: float = 1e-3,
    clamp: bool = True,
    steps: int = 500,
) -> Iterator[AdaStep]:
    """Learn lambda in theta = theta_0 + sum_i clamp(lambda_i, 0, 1) tau_i by Adam, without weight decay.

    Adam (betas 0.9 and 0.999, eps 1e-8) moves the raw coefficients; they are clamped in the merge alone, so that their
    gradient outside of [0, 1] is 0. There is no graph through the merge: dL/dlambda_i = <dL/dtheta, tau_i>.

    Args:
        base: theta_0 by tensor name. Tensors that are not floating-point are handed on as they are.
        task_vectors: tau_i of each source, for every floating-point tensor of the base.
        loss: called once per step with the merged tensors, in the dtypes of the base; returns a scalar that can be
            differentiated with respect to them.
        granularity: one coefficient per source and tensor, or one per source.
        initial: of all coefficients.
        learning_rate: of Adam.
        clamp: False leaves the coefficients free.
        steps: number of steps.

    Yields:
        The steps, in order.

    Raises:
        InvalidInput: at once, where the arguments do not fit; on a step, where the loss is no such scalar.
        MergeError: on a step, a loss or a gradient is not finite.
    """
    if granularity not in get_args(Granularity):
        raise unknown_name("granularity", str(granularity), get_args(Granularity))
    for name, value in (("initial", initial), ("learning_rate", learning_rate)):
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise InvalidInput(f"{name} must be a finite number, but got {value!r}")
    if learning_rate <= 0:
        raise InvalidInput(f"learning_rate must be above 0, but got {learning_rate}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InvalidInput(f"steps must be a whole number from 1 on, but got {steps!r}")
    names = [name for name, tensor in base.items() if tensor.is_floating_point()]
    _refuse_misfits(base, names, task_vectors)
    merge = _Merge(base, task_vectors, names, granularity=granularity, clamp=clamp)
    return _steps(merge, loss, initial=float(initial), learning_rate=float(learning_rate), steps=steps)


class _Merge:
    """The merge as a function of coefficients, [rows, sources] with a row per tensor or one row, and its gradient."""

    def __init__(
        self,
        base: Mapping[str, Tensor],
        task_vectors: Sequence[Mapping[str, Tensor]],
        names: Sequence[str],
        *,
        granularity: Granularity,
        clamp: bool,
    ) -> None:
        self.names = names
        self.keys = list(names) if granularity == "tensor" else [ALL]
        self._rows = {name: index if granularity == "tensor" else 0 for index, name in enumerate(names)}
        self._base = base
        self._task_vectors = task_vectors
        self._clamp = clamp

    def initial(self, value: float) -> Tensor:
        wide = any(self._base[name].dtype == torch.float64 for name in self._rows)
        dtype = torch.float64 if wide else torch.float32
        device = self._base[next(iter(self._rows))].device
        return torch.full((len(self.keys), len(self._task_vectors)), value, dtype=dtype, device=device)

    def merged(self, raw: Tensor) -> dict[str, Tensor]:
        """All tensors of the base; the floating-point ones are leaves that take gradients."""
        factors = raw.detach().clamp(0, 1) if self._clamp else raw.detach()
        result = dict(self._base)
        for name, row in self._rows.items():
            base = self._base[name].detach()
            total = base.to(_wide(base), copy=True)
            for factor, vectors in zip(factors[row], self._task_vectors, strict=True):
                total += vectors[name].detach().to(total.device, total.dtype) * factor.to(total.device, total.dtype)
            result[name] = total.to(base.dtype).requires_grad_()
        return result

    def gradient(self, raw: Tensor, gradients: Mapping[str, Tensor | None]) -> Tensor:
        """dL/dlambda from dL/dtheta: [rows, sources]."""
        total = torch.zeros_like(raw, dtype=torch.float64)
        for name, gradient in gradients.items():
            if gradient is not None:
                flat = gradient.reshape(-1).to(_wide(gradient))
                for source, vectors in enumerate(self._task_vectors):
                    vector = vectors[name].detach().reshape(-1).to(flat.device, flat.dtype)
                    total[self._rows[name], source] += torch.dot(flat, vector).double().to(raw.device)
        if self._clamp:
            total[(raw < 0) | (raw > 1)] = 0
        return total.to(raw.dtype)


def _steps(merge: _Merge, loss: Loss, *, initial: float, learning_rate: float, steps: int) -> Iterator[AdaStep]:
    raw = merge.initial(initial)
    # Adam works element by element, so that one matrix of all coefficients moves as each of its rows would.
    optimizer = torch.optim.Adam([raw], lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, foreach=False)
    for step in range(1, steps + 1):
        with torch.enable_grad():
            merged = merge.merged(raw)
            leaves = {name: merged[name] for name in merge.names}
            value = _scalar(loss(merged), step)
            found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        raw.grad = merge.gradient(raw, dict(zip(leaves, found, strict=True)))
        if not bool(torch.isfinite(raw.grad).all()):
            raise MergeError(f"step {step}: a gradient of the loss is not finite; use a smaller learning rate")
        gradient = raw.grad.clone()
        optimizer.step()
        yield AdaStep(
            step=step,
            loss=float(value.detach()),
            gradient=dict(zip(merge.keys, gradient, strict=True)),
            coefficients=dict(zip(merge.keys, raw.detach().clone(), strict=True)),
        )


def _scalar(value: Tensor, step: int) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        given = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise InvalidInput(f"step {step}: the loss must be one floating-point number as a tensor, but is {given}")
    if not value.requires_grad:
        raise InvalidInput(f"step {step}: the loss cannot be differentiated; compute it from the tensors it is given")
    if not bool(torch.isfinite(value.detach())):
        raise MergeError(f"step {step}: the loss is {float(value.detach())}; use a smaller learning rate")
    return value.reshape(())


def _refuse_misfits(
    base: Mapping[str, Tensor], names: Sequence[str], task_vectors: Sequence[Mapping[str, Tensor]]
) -> None:
    if not names:
        raise InvalidInput("the base has no floating-point tensors, so that there is nothing to merge")
    if isinstance(task_vectors, Mapping) or not len(task_vectors):
        raise InvalidInput("task_vectors is a list with one {tensor name: tensor} per source, at least one")
    for source, vectors in enumerate(task_vectors):
        if missing := [name for name in names if name not in vectors]:
            raise InvalidInput(f"task vector {source} lacks tensors of the base: {some(missing, 5)}")
        if extra := [name for name in vectors if name not in base]:
            raise InvalidInput(f"task vector {source} has tensors that the base lacks: {some(extra, 5)}")
        for name in names:
            if vectors[name].shape != base[name].shape or not vectors[name].is_floating_point():
                raise InvalidInput(
                    f"task vector {source} has {vectors[name].dtype} {list(vectors[name].shape)} for tensor {name!r}, "
                    f"the base {base[name].dtype} {list(base[name].shape)}"
                )


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
