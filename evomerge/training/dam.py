"""The losses of DAM (Differentiable Adaptive Merging, arXiv 2410.08371) as plain functions on tensors.

Everything is computed in float32 (float64 where float64 comes in) and can be differentiated. B texts, L positions, V
entries of the vocabulary; n sources, d coefficients of one module per source. A position counts where its mask is true;
nothing is shifted: the logits of a position are compared with the logits of the same position.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor

from evomerge.elementwise.column_linear import NONLINEARITIES
from evomerge.training.predictions import entropy_by_position, kl_by_position, wide

__all__ = ["entropy_loss", "kl_loss", "l1_l2", "merged_weight", "mse_loss", "overlap", "similarity", "weighted_overlap"]

KlNorm = Literal["tokens_and_batch", "tokens"]


def kl_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor,
    temperature: float = 2.0,
    kl_norm: KlNorm = "tokens_and_batch",
) -> Tensor:
    """KL_i = T² / (N B) · sum over counted positions of KL(softmax(teacher / T) ‖ softmax(student / T)).

    Args:
        student_logits, teacher_logits: [B, L, V], of any float dtype.
        mask: [B, L], true or 1 where a position counts; N is their number.
        temperature: T.
        kl_norm: "tokens_and_batch" divides by N and by B, as the authors do; "tokens" by N alone.

    Returns:
        A scalar, in nats; 0 where nothing counts.
    """
    counted = mask.bool()
    divisor = int(counted.sum()) * (len(mask) if kl_norm == "tokens_and_batch" else 1)
    terms = kl_by_position(student_logits[counted], teacher_logits[counted], temperature)
    return temperature**2 * terms.sum() / max(1, divisor)


def mse_loss(student_logits: Tensor, teacher_logits: Tensor, mask: Tensor, weight: float = 1.0) -> Tensor:
    """weight / N · sum over counted positions of the mean over the vocabulary of (student − teacher)².

    Args:
        student_logits, teacher_logits: [B, L, V], of any float dtype.
        mask: [B, L], true or 1 where a position counts; N is their number.
        weight: published: 1, in place of the KL divergence.

    Returns:
        A scalar; 0 where nothing counts.
    """
    counted = mask.bool()
    terms = mse_by_position(student_logits[counted], teacher_logits[counted])
    return weight * terms.sum() / max(1, len(terms))


def entropy_loss(student_logits: Tensor, mask: Tensor, temperature: float = 2.0, weight: float = 0.1) -> Tensor:
    """weight · T² / N · sum over counted positions of the entropy of softmax(student / T).

    Args:
        student_logits: [B, L, V], of any float dtype.
        mask: [B, L], true or 1 where a position counts; N is their number.
        temperature: T.
        weight: published: 0.1 where it is used; 1 gives the plain entropy.

    Returns:
        A scalar, in nats; 0 where nothing counts.
    """
    terms = entropy_by_position(student_logits[mask.bool()], temperature)
    return weight * temperature**2 * terms.sum() / max(1, len(terms))


def similarity(coefficients: Tensor | Iterable[Tensor], weight: float = 0.01) -> Tensor:
    """weight · sum over modules of the mean over pairs of sources a < b of cos(c_a, c_b).

    Minimised, so that the sources take up different columns. Its gradient is exactly 0 where all c are equal.

    Args:
        coefficients: [n, d] of one module, or several of them; raw, before phi. A module with one source counts 0.
        weight: lambda_s, published: 0.01.

    Returns:
        A scalar.
    """
    return weight * _total(torch.cosine_similarity(*_pairs(stack), dim=-1).mean(-1) for stack in _stacks(coefficients))


def overlap(coefficients: Tensor | Iterable[Tensor], weight: float = 1e-5) -> Tensor:
    """weight · sum over modules of the mean over pairs a < b of sum_j min(|c_aj|, |c_bj|).

    Args:
        coefficients: [n, d] of one module, or several of them; raw, before phi. A module with one source counts 0.
        weight: published: 1e-5 where it is used.

    Returns:
        A scalar.
    """
    return weight * _total(_smaller(stack).sum(-1).mean(-1) for stack in _stacks(coefficients))


def weighted_overlap(
    coefficients: Tensor | Iterable[Tensor],
    task_vectors: Sequence[Tensor] | Iterable[Sequence[Tensor]],
    weight: float = 1e-5,
) -> Tensor:
    """As `overlap`, with column j times sin²(2 angle) between the columns j of tau_a and tau_b.

    That factor is 0 for parallel, orthogonal and antiparallel columns and for columns of zeros, and 1 at 45 degrees.

    Args:
        coefficients: [n, d] of one module, or several of them; raw, before phi.
        task_vectors: of one module n tensors tau_i = theta_i − theta_0, [out, d] each; or that for several modules.
        weight: published: 1e-5 where it is used.

    Returns:
        A scalar.
    """
    alone = isinstance(coefficients, Tensor)
    modules = [coefficients] if isinstance(coefficients, Tensor) else list(coefficients)
    taus: list[Any] = [task_vectors] if alone else list(task_vectors)
    return overlap_at_angles(modules, [between_columns(each) for each in taus], weight)


def l1_l2(coefficients: Tensor | Iterable[Tensor], l1: float = 1e-6, l2: float = 1e-6) -> Tensor:
    """Sum over modules and sources of l1 · ‖c_i‖₁ + l2 · ‖c_i‖₂. The second norm is not squared.

    Args:
        coefficients: [n, d] of one module, or several of them; raw, before phi.
        l1, l2: published: 1e-6 both.

    Returns:
        A scalar.
    """
    norm = torch.linalg.vector_norm
    stacks = list(_stacks(coefficients, at_least=1))
    return l1 * _total(stack.abs().sum((1, 2)) for stack in stacks) + l2 * _total(
        norm(stack, dim=2).sum(1) for stack in stacks
    )


def merged_weight(weights: Sequence[Tensor], coefficients: Tensor | Sequence[Tensor], phi: str = "identity") -> Tensor:
    """W = sum_i W_i diag(phi(c_i)): column j of source i is scaled by phi(c_ij).

    A plain version that can be differentiated with respect to the coefficients; merges and trainings themselves go
    through the method `column_linear`.

    Args:
        weights: n tensors [out, in], of any float dtype.
        coefficients: [n, in], or n tensors that broadcast to the weights.
        phi: "identity", "tanh", "sigmoid" or "relu".

    Returns:
        [out, in], in float32.
    """
    terms = [
        wide(weight) * NONLINEARITIES[phi].value(wide(each)) for weight, each in zip(weights, coefficients, strict=True)
    ]
    return sum(terms[1:], terms[0])


def mse_by_position(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The mean squared difference of every position: [..., V] -> [...]."""
    return (wide(student_logits) - wide(teacher_logits)).square().mean(-1)


def between_columns(task_vectors: Sequence[Tensor]) -> Tensor:
    """sin²(2 angle) between the columns of each pair of task vectors a < b: n times [out, d] -> [pairs, d]."""
    taus = [wide(tau) for tau in task_vectors]
    cosines = [torch.cosine_similarity(one, two, dim=0, eps=1e-30) for one, two in combinations(taus, 2)]
    squares = torch.stack(cosines).square()
    return 4 * squares * (1 - squares)


def overlap_at_angles(coefficients: Sequence[Tensor], factors: Sequence[Tensor], weight: float = 1e-5) -> Tensor:
    """`weighted_overlap` with the factors of its columns known: one tensor [pairs, d] for each module."""
    return weight * _total(
        (_smaller(module[None]) * factor).sum(-1).mean(-1)
        for module, factor in zip(coefficients, factors, strict=True)
        if len(module) > 1
    )


def _stacks(coefficients: Tensor | Iterable[Tensor], at_least: int = 2) -> Iterator[Tensor]:
    """Modules of one shape together, [modules, n, d]: a model has many modules and few widths.

    Modules with fewer than `at_least` sources are left out.
    """
    by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for module in [coefficients] if isinstance(coefficients, Tensor) else coefficients:
        by_shape[module.shape].append(module)
    yield from (torch.stack(modules) for shape, modules in by_shape.items() if shape[0] >= at_least)


def _pairs(stack: Tensor) -> tuple[Tensor, Tensor]:
    """The coefficients of the first and of the second source of each pair: [modules, pairs, d] both."""
    first, second = zip(*combinations(range(stack.shape[1]), 2), strict=True)
    return stack[:, list(first)], stack[:, list(second)]


def _smaller(stack: Tensor) -> Tensor:
    first, second = _pairs(stack)
    return torch.minimum(first.abs(), second.abs())


def _total(terms: Iterable[Tensor]) -> Tensor:
    found = list(terms)
    return torch.cat(found).sum() if found else torch.zeros(())
