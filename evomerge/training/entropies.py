"""Entropies of a live model's predictions with their gradients: in pieces, as the losses of DAM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.evaluation.evaluator import CalibrationText
from evomerge.optimisation.batches import CalibrationBatches
from evomerge.optimisation.student import Student
from evomerge.training.dam_losses import position_parts
from evomerge.training.predictions import entropy_by_position


@dataclass(frozen=True)
class _Row:
    """A text of a step, with the index of its source and 1 / counted positions of its batch."""

    text: CalibrationText
    source: int
    share: float


def backward_entropies(
    batches: Sequence[Mapping[str, Sequence[int]]], positions: str, *, calibration: CalibrationBatches, student: Student
) -> dict[str, float]:
    """The entropy of each source's texts, after a backward pass of the sum over sources and batches.

    The entropy of a batch is the mean over its counted positions, in nats. A forward pass has at most `max_tokens`
    padded tokens.

    Args:
        batches: of a step: source -> indices of its texts.
        positions: those that count, see `CalibrationText.counted`.

    Returns:
        Source -> the mean over its batches, before the step.
    """
    sources = list(calibration.texts)
    rows = _rows(batches, positions, sources, calibration)
    totals = torch.zeros(len(sources), dtype=torch.float64)
    for part in calibration.passes([row.text for row in rows]):
        together = rows[part]
        batch = calibration.batch([row.text for row in together], student.device)
        logits, counted = student.logits(batch, gradients=True)
        gradient = torch.zeros_like(logits)
        found = _entropies(logits.detach(), counted, [row.share for row in together], gradient)
        logits.backward(gradient)  # type: ignore[no-untyped-call]
        totals.index_add_(0, torch.tensor([row.source for row in together]), found)
    return {source: float(total) / len(batches) for source, total in zip(sources, totals, strict=True)}


def entropies(calibration: CalibrationBatches, student: Student) -> dict[str, float]:
    """Source -> mean entropy over the counted positions of its first texts, in nats."""
    measured = {}
    for source in calibration.texts:
        total, positions = 0.0, 0
        for batch in calibration.measured(source, student.device):
            logits, counted = student.logits(batch)
            flat = logits.reshape(-1, logits.shape[-1])
            chosen = counted.reshape(-1).nonzero().squeeze(1)
            for part in position_parts(len(chosen), logits):
                total += float(entropy_by_position(flat[chosen[part]]).double().sum())
            positions += len(chosen)
        measured[source] = total / positions
    return measured


def _rows(
    batches: Sequence[Mapping[str, Sequence[int]]],
    positions: str,
    sources: Sequence[str],
    calibration: CalibrationBatches,
) -> list[_Row]:
    rows = []
    for chosen in batches:
        for index, source in enumerate(sources):
            texts = [calibration.texts[source][text] for text in chosen[source]]
            share = 1 / sum(len(text.counted(positions)) for text in texts)
            rows += [_Row(text, index, share) for text in texts]
    return rows


def _entropies(logits: Tensor, counted: Tensor, shares: Sequence[float], gradient: Tensor) -> Tensor:
    """The entropy of each row times its share, float64 [B] on the CPU; the gradient is written into `gradient`.

    Args:
        logits: [B, K, V].
        counted: [B, K].
        gradient: [B, K, V], zeros.
    """
    flat, flat_gradient = logits.reshape(-1, logits.shape[-1]), gradient.view(-1, logits.shape[-1])
    positions = counted.reshape(-1).nonzero().squeeze(1)
    rows = positions // counted.shape[1]
    factors = torch.tensor(shares, dtype=torch.float64, device=logits.device)
    totals = torch.zeros(len(shares), dtype=torch.float64, device=logits.device)
    for part in position_parts(len(positions), logits):
        piece = flat[positions[part]].requires_grad_()
        weighted = entropy_by_position(piece).double() * factors[rows[part]]
        weighted.sum().backward()  # type: ignore[no-untyped-call]
        flat_gradient[positions[part]] = torch.zeros_like(piece) if piece.grad is None else piece.grad
        totals.index_add_(0, rows[part], weighted.detach())
    return totals.cpu()
