"""The losses of a step of DAM with their gradients: taken in pieces, so that no temporary is as large as the logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from evomerge.optimisation.batches import CalibrationBatches
from evomerge.optimisation.student import Student
from evomerge.training.dam_settings import DamSettings
from evomerge.training.predictions import entropy_by_position
from evomerge.training.teacher import FullTargets, Targets, Teachers

# Logits per piece of a loss. CPU: the temporaries stay in cache. Elsewhere: enough to hide kernel launches.
_CPU_PIECE = 1 << 18
_DEVICE_PIECE = 1 << 26


def backward_losses(
    chosen: Mapping[str, Sequence[int]],
    *,
    calibration: CalibrationBatches,
    student: Student,
    teachers: Teachers,
    settings: DamSettings,
) -> dict[str, float]:
    """The loss of each source on its texts of a step, after a backward pass through the live model.

    Sources share a forward pass where their texts together have at most `max_tokens` padded tokens.

    Args:
        chosen: source -> indices of its texts.
    """
    texts = {source: [calibration.texts[source][index] for index in indices] for source, indices in chosen.items()}
    teachers.prepare(chosen)
    every = [text for several in texts.values() for text in several]
    if len(every) * max(len(text.tokens) for text in every) <= settings.max_tokens:
        passes = [list(chosen)]
    else:
        passes = [[source] for source in chosen]
    losses: dict[str, float] = {}
    for together in passes:
        batch = calibration.batch([text for source in together for text in texts[source]], student.device)
        logits, counted = student.logits(batch, gradients=True)
        gradient = torch.zeros_like(logits)
        for place, source in enumerate(together):
            rows = slice(place * settings.batch_size, (place + 1) * settings.batch_size)
            targets = teachers.targets(source, chosen[source])
            losses[source] = source_loss(
                logits.detach()[rows], counted[rows], targets, settings, gradient=gradient[rows]
            )
        logits.backward(gradient)  # type: ignore[no-untyped-call]
    return losses


def source_loss(logits: Tensor, counted: Tensor, targets: Targets, settings: DamSettings, *, gradient: Tensor) -> float:
    """The weighted loss of one source, a mean over the counted positions; its gradient is written into `gradient`.

    Args:
        logits: of the student, [B, K, V].
        counted: [B, K].
        targets: of the source, at the counted positions.
        gradient: [B, K, V], zeros.
    """
    flat, flat_gradient = logits.reshape(-1, logits.shape[-1]), gradient.view(-1, logits.shape[-1])
    positions = counted.reshape(-1).nonzero().squeeze(1)
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for part in position_parts(len(positions), logits):
        piece = flat[positions[part]].float().requires_grad_()
        loss = _summed_loss(piece, part, targets, settings) / len(positions)
        loss.backward()  # type: ignore[no-untyped-call]
        flat_gradient[positions[part]] = torch.zeros_like(piece) if piece.grad is None else piece.grad.to(logits.dtype)
        total += loss.detach()
    return float(total)


def divergences(calibration: CalibrationBatches, student: Student, temperature: float) -> dict[str, float]:
    """Source -> T² · KL(source ‖ student) per counted token, on the first texts of the source."""
    measured = {}
    for source in calibration.texts:
        total, tokens = 0.0, 0
        for batch in calibration.measured(source, student.device):
            targets = FullTargets(student.logits_of_source(source, batch))
            logits, counted = student.logits(batch)
            positions = counted.reshape(-1).nonzero().squeeze(1)
            flat = logits.reshape(-1, logits.shape[-1])
            for part in position_parts(len(positions), logits):
                total += float(targets.kl(flat[positions[part]], part, temperature).sum())
            tokens += len(positions)
        measured[source] = temperature**2 * total / tokens
    return measured


def _summed_loss(piece: Tensor, part: slice, targets: Targets, settings: DamSettings) -> Tensor:
    """The weighted losses of some positions, summed: those of `dam` before they are divided by the tokens."""
    weights, temperature = settings.losses, settings.temperature
    batch = settings.batch_size if settings.kl_norm == "tokens_and_batch" else 1
    loss = torch.zeros((), device=piece.device)
    if weights.kl:
        loss = loss + weights.kl * temperature**2 / batch * targets.kl(piece, part, temperature).sum()
    if weights.mse:
        loss = loss + weights.mse * targets.mse(piece, part).sum()
    if weights.entropy:
        loss = loss + weights.entropy * temperature**2 * entropy_by_position(piece, temperature).sum()
    return loss


def position_parts(positions: int, logits: Tensor) -> Iterator[slice]:
    """Slices of the counted positions, each with few enough logits for one piece."""
    size = max(1, (_CPU_PIECE if logits.device.type == "cpu" else _DEVICE_PIECE) // logits.shape[-1])
    for start in range(0, positions, size):
        yield slice(start, min(start + size, positions))
